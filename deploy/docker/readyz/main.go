// Readyz is the image's health check, since the image has no shell and no other program that could ask:
//
//	readyz http://127.0.0.1:8080/readyz
//
// It exits 0 if the answer is 200, else 1. What a daemon answers is passed on either way, so that docker inspect shows
// the reasons. The daemon has ten seconds to answer.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	if len(args) != 1 {
		return errors.New("usage: readyz URL")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	// Docker keeps 4096 bytes of it.
	if _, err := io.Copy(stdout, io.LimitReader(response.Body, 4096)); err != nil {
		return fmt.Errorf("read answer of %s: %w", args[0], err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", args[0], response.Status)
	}
	return nil
}
