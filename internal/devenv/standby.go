package devenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// StartStandby starts a hot standby of a running server: a copy that follows it by streaming replication. It has the primary's
// databases, roles and password, and takes reads only. The directory must be temporary, which Dir "" is.
func StartStandby(ctx context.Context, primary *Postgres, config PostgresConfig) (*Postgres, error) {
	if config.Dir != "" {
		return nil, fmt.Errorf("start a standby in %q: its directory is a temporary one", config.Dir)
	}
	binDir, _, err := findPostgres(ctx, config.BinDir)
	if err != nil {
		return nil, err
	}
	p := &Postgres{config: config, program: filepath.Join(binDir, "postgres"), password: primary.password}
	err = p.place()
	if err == nil {
		err = p.copyFrom(ctx, binDir, primary)
	}
	return p.start(ctx, err)
}

// copyFrom makes the data directory as a copy of the primary's.
func (p *Postgres) copyFrom(ctx context.Context, binDir string, primary *Postgres) error {
	if err := errors.Join(os.MkdirAll(p.dir, 0o700), p.hand(p.dir)); err != nil {
		return fmt.Errorf("make the standby's directory: %w", err)
	}
	dir, err := os.Open(p.dir)
	if err != nil {
		return fmt.Errorf("open the standby's directory: %w", err)
	}
	defer dir.Close() // read-only
	return command{
		name: "pg_basebackup",
		path: filepath.Join(binDir, "pg_basebackup"),
		args: []string{
			"--pgdata=" + inheritedDir + "/.", "--dbname=" + primary.URL("postgres"), "--write-recovery-conf",
			"--checkpoint=fast", "--no-sync", "--no-manifest",
		},
		credential:  p.credential,
		files:       []*os.File{dir},
		deathSignal: syscall.SIGKILL,
	}.run(ctx)
}
