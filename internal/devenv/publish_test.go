package devenv_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"plenum/internal/devenv"
	"plenum/internal/devenv/devtest"
)

// More messages than the window holds arrive as they are, in order, and one is retained.
func TestPublish(t *testing.T) {
	t.Parallel()
	broker := devtest.Mosquitto(t)
	box := make(chan devenv.Message, 1000)
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(broker.URL()).SetClientID("box").
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			box <- devenv.Message{Topic: m.Topic(), Payload: m.Payload(), Retain: m.Retained()}
		}))
	if err := finish(client.Connect()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Disconnect(100) })
	if err := finish(client.Subscribe("#", 1, nil)); err != nil {
		t.Fatal(err)
	}
	sent := []devenv.Message{
		{Topic: "a/" + strings.Repeat("x", 60_000), Payload: []byte{0, 0xff, 0xc0, '\n'}},
		{Topic: "a//b", Payload: bytes.Repeat([]byte{7}, 300_000)},
		{Topic: "a"},
	}
	for i := range 300 {
		sent = append(sent, devenv.Message{Topic: "b", Payload: fmt.Append(nil, i)})
	}
	if err := devenv.Publish(t.Context(), broker.URL(), sent...); err != nil {
		t.Fatal(err)
	}
	for i, want := range sent {
		if got := <-box; got.Topic != want.Topic || !bytes.Equal(got.Payload, want.Payload) {
			t.Fatalf("message %d: %d bytes of %.20q, want %d of %.20q", i, len(got.Payload), got.Topic, len(want.Payload), want.Topic)
		}
	}
	kept := devenv.Message{Topic: "kept", Payload: []byte("1"), Retain: true}
	if err := devenv.Publish(t.Context(), broker.URL(), kept); err != nil {
		t.Fatal(err)
	}
	<-box // as it came to a subscription that was there
	if err := finish(client.Subscribe("kept", 1, nil)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kept, <-box); diff != "" {
		t.Error(diff)
	}
	if err := devenv.Publish(t.Context(), broker.URL(), devenv.Message{Topic: strings.Repeat("x", 65_536)}); err == nil {
		t.Error("a topic of 65,536 bytes was sent")
	}
}
