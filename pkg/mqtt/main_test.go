package mqtt_test

import (
	"testing"

	"plenum/internal/devenv/devtest"
)

func TestMain(m *testing.M) { devtest.Main(m) }
