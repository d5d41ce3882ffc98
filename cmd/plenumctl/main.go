// Command plenumctl is Plenum's tool for people: the demo, simulated devices, and a look at and a hand on the
// database's schema and partitions, a live table's way to partitions, the quarantine, the dead letters and the sessions at the broker.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"plenum/internal/program"
)

func main() { os.Exit(program.Main("plenumctl", run)) }

// call is one invocation of a command.
type call struct {
	loader *program.Loader
	getenv func(string) string
	args   []string // what is no flag
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// command is one subcommand: its words, and a function that declares its flags and returns what runs it.
type command struct {
	words string
	args  string // what may stand beside the flags
	about string
	setup func(*flag.FlagSet) func(context.Context, *call) error
}

func commands() []command {
	return []command{
		{"demo", "", "run everything on this machine with simulated compressors, until Ctrl-C", setupDemo},
		{"simulate", "", "publish the readings of simulated compressors, or of a CSV file", setupSimulate},
		{"try", "", "show what the message on standard input would become: rows, or quarantine; exit code 3 if any of it", setupTry},
		{"quarantine list", "", "list what was quarantined, the newest first, or count it", setupQuarantineList},
		{"quarantine show", "ID", "show one line of the quarantine with its payload", setupQuarantineShow},
		{"quarantine replay", "[ID…]", "store what was quarantined and can be stored now; exit code 3 if any of it cannot", setupQuarantineReplay},
		{"quarantine purge", "[ID…]", "delete from the quarantine, and return the space", setupQuarantinePurge},
		{"feed list", "", "list the feed's consumers: where each stands, and how far it is behind", setupFeedList},
		{"feed read", "NAME", "write a consumer's next rows to standard output, and where they end to standard error", setupFeedRead},
		{"feed seek", "NAME POSITION|TIME", "move a consumer, either way, to a position or to what was processed at a time", setupFeedSeek},
		{"feed remove", "NAME", "remove a consumer", setupFeedRemove},
		{"feed dead list", "[CONSUMER]", "list what targets refused for good, the newest first", setupDeadList},
		{"feed dead show", "ID", "show one dead letter with its rows", setupDeadShow},
		{"feed dead retry", "ID…", "have syncjob deliver dead letters once more; exit code 3 if one does not exist", setupDeadRetry},
		{"feed dead purge", "ID…", "delete dead letters", setupDeadPurge},
		{"sessions list", "", "list the sessions at the broker that ingests have had, and who uses them", setupSessionsList},
		{"sessions drain", "CLIENT_ID", "store what waits in a session that nobody uses, and end the session", setupSessionsDrain},
		{"sync status", "", "show what waits to be marked, and which batches were set aside", setupSyncStatus},
		{"sync explain", "", "run the marking statement and its variants, or one of your own, on a real batch, and roll back: time, plan and rows missed of each", setupSyncExplain},
		{"sync resolve", "BATCH", "bring a ledger line and its rows together after rows were changed by hand", setupSyncResolve},
		{"doctor", "", "find what nothing mends by itself; exit code 3 if there is something", setupDoctor},
		{"config check", "", "read the configuration and report every fault", setupConfigCheck},
		{"migrate up", "", "bring the schema to this release, and grant the roles their rights", setupMigrateUp},
		{"migrate status", "", "show the schema's version and this release's", setupMigrateStatus},
		{"partitions list", "", "list the partitions of every table", partitionsCommand(listPartitions)},
		{"partitions plan", "", "show what would be done, statement by statement, with the locks", partitionsCommand(planPartitions)},
		{"partitions apply", "", "do what plan shows, and nothing else", setupPartitionsApply},
		{"partitions register", "", "keep a partitioned table, or change how; the table's partitions are made, repaired and retired from then on", setupRegister},
		{"partitions unregister", "", "keep a table no longer; its partitions stay as they are", setupUnregister},
		{"partitions adopt", "", "show how a table that pg_partman or a person partitioned would be kept, and keep it with --apply; exit code 3 if something is in the way", setupAdopt},
		{"partitions run", "", "keep every registered table until it is stopped, as ingest does beside its work; serves HTTP", setupPartitionsRun},
		{"partitions check", "", "report what is not as it should be; exit code 3 if there is something", partitionsCommand(checkPartitions)},
		{"partitions hold", "DAY", "keep a UTC day, or an hour of one, whatever its age, until it is released", setupHold},
		{"partitions release", "DAY", "end every hold on a day: what is past its retention goes", setupRelease},
		{"bluegreen init", "", "build a table partitioned by day beside each live one, and capture what is written from then on; exit code 3 while something that was found is not accepted", setupBluegreenInit},
		{"bluegreen sync", "", "copy what is not copied yet and bring the passive tables up to date; goes on where it was stopped", setupBluegreenSync},
		{"bluegreen verify", "", "compare both sides day by day, and how they serve the application's statements; exit code 3 if they differ", setupBluegreenVerify},
		{"bluegreen swap", "", "make the new tables the live ones; exit code 3 while something stands against it", setupBluegreenSwap},
		{"bluegreen rollback", "", "make the old tables the live ones again; exit code 3 if both sides differ", setupBluegreenRollback},
		{"bluegreen status", "", "show where the migration stands, what can be done next, and what going back would cost", setupBluegreenStatus},
		{"bluegreen finish", "", "end the capture with the new tables live: from then on there is no way back", setupBluegreenFinish},
		{"bluegreen abort", "", "take away all that init made, with the old tables live", setupBluegreenAbort},
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] == "--help" || args[0] == "-h" || args[0] == "help" {
		usage(stdout)
		if len(args) == 0 {
			return program.Usagef("no command given")
		}
		return nil
	}
	if args[0] == "--version" || args[0] == "-version" {
		_, err := fmt.Fprintln(stdout, "plenumctl", program.Version())
		return err
	}
	for _, c := range commands() {
		words := strings.Fields(c.words)
		if len(args) >= len(words) && strings.Join(args[:len(words)], " ") == c.words {
			return c.run(ctx, args[len(words):], getenv, stdout, stderr)
		}
	}
	if group := commandsOf(args[0]); len(group) > 0 && (len(args) == 1 || args[1] == "--help" || args[1] == "-h") {
		for _, c := range group {
			fmt.Fprintf(stdout, "plenumctl %-21s %s\n", c.words, c.about)
		}
		return nil
	}
	return program.Usagef("unknown command %q; see plenumctl --help", strings.Join(args[:min(2, len(args))], " "))
}

// commandsOf returns the commands whose first word is word.
func commandsOf(word string) (group []command) {
	for _, c := range commands() {
		if strings.HasPrefix(c.words, word+" ") {
			group = append(group, c)
		}
	}
	return group
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "plenumctl is Plenum's tool for people.\n\nUsage: plenumctl COMMAND [--config FILE] [--KEY VALUE]…\n\nCommands:")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-21s %s\n", c.words, c.about)
	}
	fmt.Fprintln(w, "\nplenumctl COMMAND --help shows a command's flags.")
}

func (c command) run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet(c.words, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	do := c.setup(fs)
	own := map[string]bool{}
	fs.VisitAll(func(f *flag.Flag) { own[f.Name] = true })
	listen := "127.0.0.1:8080"
	if c.words == "partitions run" { // beside an ingest and a syncjob
		listen = "127.0.0.1:8082"
	}
	loader := program.NewLoader(listen)
	loader.AddFlags(fs)
	rest, err := parse(fs, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		c.help(fs, own, loader, stdout)
		return nil
	case err != nil:
		return program.Usagef("%w; see plenumctl %s --help", err, c.words)
	case len(rest) > 0 && c.args == "":
		return program.Usagef("unexpected argument %q; see plenumctl %s --help", rest[0], c.words)
	}
	return do(ctx, &call{loader, getenv, rest, os.Stdin, stdout, stderr})
}

// parse parses flags before, between and behind the other arguments, which it returns; behind -- all are others.
func parse(fs *flag.FlagSet, args []string) (others []string, err error) {
	for {
		if err := fs.Parse(args); err != nil || fs.NArg() == 0 {
			return others, err
		}
		if flags := args[:len(args)-fs.NArg()]; len(flags) > 0 && flags[len(flags)-1] == "--" {
			return append(others, fs.Args()...), nil
		}
		others, args = append(others, fs.Arg(0)), fs.Args()[1:]
	}
}

func (c command) help(fs *flag.FlagSet, own map[string]bool, loader *program.Loader, w io.Writer) {
	fmt.Fprintf(w, "plenumctl %s: %s.\n\nFlags:\n", strings.TrimSpace(c.words+" "+c.args), c.about)
	fs.VisitAll(func(f *flag.Flag) {
		if !own[f.Name] {
			return
		}
		fmt.Fprintf(w, "  --%s\n        %s", f.Name, f.Usage)
		if f.DefValue != "" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
	fmt.Fprintln(w)
	loader.PrintKeys(w)
}

// readInput reads at most so many bytes of the file that a flag names, or of standard input where that is -.
func (c *call) readInput(flag, name string, most int64) ([]byte, error) {
	in := c.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, program.Usagef("--%s: %w", flag, err)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return nil, program.Usagef("--%s: read %q: %w", flag, name, err)
	}
	return text, nil
}

// app opens the database of the settings, for a command that acts on it.
func (c *call) app(ctx context.Context) (*program.App, error) {
	s, err := c.loader.Load(c.getenv)
	if err != nil {
		return nil, err
	}
	if s.Database.URL == "" { // it acts as the owner only
		s.Database.URL, s.Database.ReadURL = s.Database.OwnerURL, s.Database.OwnerURL
	}
	log, err := c.logger(s)
	if err != nil {
		return nil, err
	}
	return program.NewApp(ctx, "plenumctl", s, log)
}

func (c *call) logger(s program.Settings) (*zap.Logger, error) {
	return program.NewLogger(s, zapcore.Lock(zapcore.AddSync(c.stderr)), program.IsTerminal(c.stderr))
}
