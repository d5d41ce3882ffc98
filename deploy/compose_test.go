package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// service has the keys that compose.yaml uses. The merge keys (<<) are resolved by the decoder.
type service struct {
	Image string
	Build struct {
		Context, Dockerfile string
		Args                map[string]string
	}
	Command, Entrypoint, Ports, Volumes, Secrets []string
	Environment                                  map[string]string
	Restart                                      string
	StopGracePeriod                              time.Duration `yaml:"stop_grace_period"`
	ShmSize                                      string        `yaml:"shm_size"`
	ReadOnly                                     bool          `yaml:"read_only"`
	CapDrop                                      []string      `yaml:"cap_drop"`
	SecurityOpt                                  []string      `yaml:"security_opt"`
	DependsOn                                    map[string]struct {
		Condition string
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test              []string
		Interval, Timeout time.Duration
		Retries           int
		StartPeriod       time.Duration `yaml:"start_period"`
	}
}

type composeFile struct {
	Name     string
	Plenum   service `yaml:"x-plenum"`
	Services map[string]service
	Volumes  map[string]struct{}
	Secrets  map[string]struct{ File string }
}

func compose(t *testing.T) composeFile {
	t.Helper()
	var file composeFile
	decode(t, "docker/compose.yaml", &file)
	if len(file.Services) != 6 {
		t.Fatalf("%d services", len(file.Services))
	}
	return file
}

func TestComposeHoldsTogether(t *testing.T) {
	t.Parallel()
	file := compose(t)
	for name, s := range file.Services {
		if len(s.Healthcheck.Test) == 0 || s.Restart == "" {
			t.Errorf("%s: health check %q, restart %q", name, s.Healthcheck.Test, s.Restart)
		}
		for other, on := range s.DependsOn {
			if _, ok := file.Services[other]; !ok || on.Condition != "service_healthy" {
				t.Errorf("%s depends on %q, %q", name, other, on.Condition)
			}
		}
		for _, volume := range s.Volumes {
			source, target, _ := strings.Cut(volume, ":")
			if !strings.HasPrefix(source, ".") {
				if _, ok := file.Volumes[source]; !ok {
					t.Errorf("%s: volume %q is not declared", name, source)
				}
				continue
			}
			if _, err := os.Stat(filepath.Join("docker", source)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !strings.HasSuffix(target, ":ro") {
				t.Errorf("%s can write to %q", name, source)
			}
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") && !strings.HasPrefix(port, "${PLENUM_MQTT_BIND:-127.0.0.1}:") {
				t.Errorf("%s: port %q is published beyond this machine", name, port)
			}
		}
	}
	for _, name := range []string{"ingest", "syncjob"} {
		if s := file.Services[name]; s.StopGracePeriod <= 30*time.Second || s.Healthcheck.Test[1] != "/usr/local/bin/readyz" {
			t.Errorf("%s: killed after %v, within its drain; health check %q", name, s.StopGracePeriod, s.Healthcheck.Test)
		}
	}
}

func TestComposeKeepsSecretsInFiles(t *testing.T) {
	t.Parallel()
	file := compose(t)
	secret := regexp.MustCompile(`PASSWORD|TOKEN|SECRET|DATABASE_.*URL`)
	used := map[string]bool{}
	for name, s := range file.Services {
		for _, secret := range s.Secrets {
			used[secret] = true
			if _, ok := file.Secrets[secret]; !ok {
				t.Errorf("%s: secret %q is not declared", name, secret)
			}
		}
		for key, value := range s.Environment {
			if strings.Contains(value, "@") && strings.Contains(value, "://") {
				t.Errorf("%s: %s holds a URL with a user", name, key)
			}
			if !secret.MatchString(key) {
				continue
			}
			mounted, ok := strings.CutPrefix(value, "/run/secrets/")
			if !strings.HasSuffix(key, "_FILE") || !ok || !slices.Contains(s.Secrets, mounted) {
				t.Errorf("%s: %s=%s names no secret of this service", name, key, value)
			}
		}
	}
	for name := range file.Secrets {
		if !used[name] {
			t.Errorf("no service uses secret %q", name)
		}
	}
}

// init-secrets.sh makes every file that compose.yaml names, and keeps what is there.
func TestInitSecrets(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("docker/init-secrets.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "init-secrets.sh")
	if err := os.WriteFile(path, script, 0o700); err != nil {
		t.Fatal(err)
	}
	read := func() map[string]string {
		t.Helper()
		run(t, nil, "sh", path)
		made := map[string]string{}
		for name, secret := range compose(t).Secrets {
			content, err := os.ReadFile(filepath.Join(dir, secret.File))
			if err != nil {
				t.Fatal(err)
			}
			made[name] = string(content)
		}
		return made
	}
	first := read()
	password := regexp.MustCompile(`^[0-9a-f]{32}$`)
	for name, value := range first {
		if role, ok := strings.CutSuffix(name, "_url"); ok {
			if !strings.Contains(value, ":"+first[role+"_password"]+"@postgres:5432/") {
				t.Errorf("%s is %q", name, value)
			}
		} else if !password.MatchString(value) {
			t.Errorf("%s is %q", name, value)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "secrets")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the secrets: %v, %v", info, err)
	}
	for name, value := range read() {
		if first[name] != value {
			t.Errorf("the second run changed %s", name)
		}
	}
}
