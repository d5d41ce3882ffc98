package deploy_test

import (
	"encoding/json"
	"os"
	"testing"
)

type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource struct{ UID string }
	GridPos    struct{ H, W, X, Y int }
	Targets    []struct {
		Expr       string
		Datasource struct{ UID string }
	}
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("grafana/dashboards/plenum.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID           string
		SchemaVersion int
		Panels        []panel
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	// Grafana 10 and 11 read it; 36 brought data sources by uid, 39 is what 10.3 writes.
	if dashboard.UID != "plenum" || dashboard.SchemaVersion < 36 || dashboard.SchemaVersion > 39 {
		t.Errorf("uid %q, schema version %d", dashboard.UID, dashboard.SchemaVersion)
	}
	ids := map[int]string{}
	occupied := map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if other, twice := ids[p.ID]; twice || p.ID == 0 {
			t.Errorf("panels %q and %q have id %d", other, p.Title, p.ID)
		}
		ids[p.ID] = p.Title
		for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				if other, taken := occupied[[2]int{x, y}]; taken || x > 23 {
					t.Fatalf("panel %q lies over %q or beyond the 24 columns", p.Title, other)
				}
				occupied[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q: %d targets, unit %q, data source %q", p.Title, len(p.Targets), p.FieldConfig.Defaults.Unit, p.Datasource.UID)
		}
		for _, target := range p.Targets {
			if target.Expr == "" || target.Datasource.UID != "${datasource}" {
				t.Errorf("panel %q: expression %q on data source %q", p.Title, target.Expr, target.Datasource.UID)
			}
		}
	}
}
