package devenv_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

const hangLimit = time.Minute

// finish waits for an MQTT operation.
func finish(token mqtt.Token) error {
	if !token.WaitTimeout(hangLimit) {
		return fmt.Errorf("no answer within %v", hangLimit)
	}
	return token.Error()
}

// session connects with a persistent session; received gets each payload.
func session(t *testing.T, broker, clientID string, received chan<- string) mqtt.Client {
	t.Helper()
	options := mqtt.NewClientOptions().AddBroker(broker).SetClientID(clientID).
		SetCleanSession(false).SetAutoReconnect(false).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { received <- string(m.Payload()) })
	client := mqtt.NewClient(options)
	if err := finish(client.Connect()); err != nil {
		t.Fatal(err)
	}
	return client
}

func TestMosquittoKeepsSessionsOverRestart(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	received := make(chan string, 10)
	subscriber := session(t, broker.URL(), "subscriber", received)
	if err := finish(subscriber.Subscribe("kept/#", 1, nil)); err != nil {
		t.Fatal(err)
	}
	subscriber.Disconnect(100)
	publisher := session(t, broker.URL(), "publisher", received)
	if err := finish(publisher.Publish("kept/message", 1, false, "waiting")); err != nil {
		t.Fatal(err)
	}
	publisher.Disconnect(100)
	address := broker.URL()
	for _, restart := range []func() error{
		func() error { return broker.Restart(t.Context()) },
		func() error { return errors.Join(broker.Stop(), broker.Restart(t.Context())) },
		// What was saved at the last clean stop survives a kill.
		func() error { return errors.Join(broker.Crash(), broker.Restart(t.Context())) },
	} {
		if err := restart(); err != nil {
			t.Fatal(err)
		}
	}
	if broker.URL() != address {
		t.Errorf("the URL became %s, was %s", broker.URL(), address)
	}
	defer session(t, broker.URL(), "subscriber", received).Disconnect(100)
	select {
	case got := <-received:
		if got != "waiting" {
			t.Errorf("received %q, want the message that waited", got)
		}
	case <-time.After(hangLimit):
		t.Error("the waiting message is gone")
	}
}

func TestMosquittoLinesReplaceDefaults(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t, "allow_anonymous false")
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(broker.URL()).SetClientID("nobody"))
	if err := finish(client.Connect()); err == nil || !strings.Contains(err.Error(), "not Authorized") {
		t.Errorf("anonymous connect: %v, want a refusal", err)
	}
}

func TestMosquittoTemporaryDirectoryGoes(t *testing.T) {
	t.Parallel()
	broker, err := devenv.StartMosquitto(t.Context(), devenv.MosquittoConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := broker.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := broker.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "removed by Stop") {
		t.Errorf("restart without a directory: %v", err)
	}
}

func TestMosquittoThatCannotStart(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = devenv.StartMosquitto(t.Context(), devenv.MosquittoConfig{Port: listener.Addr().(*net.TCPAddr).Port})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port in use: %v, want EADDRINUSE", err)
	}
	dir := t.TempDir()
	_, err = devenv.StartMosquitto(t.Context(), devenv.MosquittoConfig{Dir: dir, Lines: []string{"colour blue"}})
	if err == nil || !strings.Contains(err.Error(), "colour") || !strings.Contains(err.Error(), dir) {
		t.Errorf("bad line: %v, want the broker's own words and the directory", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "mosquitto.conf")); err != nil {
		t.Errorf("the kept directory: %v", err)
	}
}
