package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"plenum/internal/program"
)

func setupSessionsList(fs *flag.FlagSet) func(context.Context, *call) error {
	var out output
	out.add(fs)
	return func(ctx context.Context, c *call) error {
		if err := out.check(); err != nil {
			return err
		}
		a, err := c.app(ctx)
		if err != nil {
			return err
		}
		defer a.Close()
		sessions, err := program.Sessions(ctx, a)
		if err != nil {
			return err
		}
		type session struct {
			ClientID  string    `json:"client_id"`
			Use       string    `json:"use"`
			UpdatedAt time.Time `json:"updated_at"`
			Filters   []string  `json:"filters"`
			Holder    string    `json:"holder"`
		}
		all := make([]session, len(sessions))
		for i, s := range sessions {
			all[i] = session{s.ClientID, program.SessionUse(a.Settings, s), s.UpdatedAt, s.Filters, s.Holder}
		}
		return out.print(c.stdout, all, func(w io.Writer) {
			if len(all) == 0 {
				fmt.Fprintln(w, "none")
				return
			}
			fmt.Fprintln(w, "CLIENT ID\tUSE\tFILTERS SINCE\tFILTERS\tHOLDER")
			for _, s := range all {
				holder := s.Holder
				if holder == "" {
					holder = "nobody"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", plain(s.ClientID), s.Use, instant(s.UpdatedAt), plain(strings.Join(s.Filters, " ")), plain(holder))
			}
		})
	}
}
