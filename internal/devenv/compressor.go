package devenv

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// A reading stands for one second of its device's life, however fast the
// readings follow one another: so signals depend on the seed alone.
const (
	second = 1.0 // of a device's life

	loadBelowBar   = 6.8 // the pressure band: load below, unload above
	unloadAboveBar = 7.6
	idleLimit      = 300 * second // unloaded this long, the motor stops

	fillBarPerSecond = 0.03 // rise of the receiver's pressure at full delivery and no demand
	ratedFlow        = 12.5 // m³/min
	ambientC         = 24.0

	performanceEvery = 60   // readings: one of them is the minute's summary
	faultEvery       = 5000 // readings, on average
)

// fleet generates the readings of compressors in turn.
type fleet struct {
	devices []compressor
	turn    int
	buffer  []byte
}

// newFleet makes devices with the numbers from first up.
func newFleet(first, devices int, seed uint64) *fleet {
	f := &fleet{devices: make([]compressor, devices)}
	for i := range f.devices {
		f.devices[i] = newCompressor(first-1+i, seed)
	}
	return f
}

// Close does nothing: a fleet holds no resource.
func (f *fleet) Close() error { return nil }

// next is the next device's reading. It never ends.
func (f *fleet) next(now time.Time) (reading, error) {
	c := &f.devices[f.turn]
	f.turn = (f.turn + 1) % len(f.devices)
	c.step()
	kind := c.kind()
	f.buffer = appendHead(f.buffer[:0], now.Truncate(time.Millisecond), c.seq, kind, c.device)
	switch kind {
	case "performance":
		f.buffer = c.appendPerformance(f.buffer)
	case "fault":
		f.buffer = c.appendFault(f.buffer)
	default:
		f.buffer = c.appendParameters(f.buffer)
	}
	f.buffer = append(f.buffer, '}')
	return reading{device: c.device, seq: c.seq, payload: f.buffer}, nil
}

func deviceName(index int) string { return fmt.Sprintf("cmp-%05d", index+1) }

// appendHead appends a message up to where its metrics begin. A time that is
// no whole millisecond is written as RFC 3339, which loses nothing.
func appendHead(to []byte, at time.Time, seq int64, kind, device string) []byte {
	to = append(to, `{"ts":`...)
	if at.Nanosecond()%int(time.Millisecond) == 0 {
		to = strconv.AppendInt(to, at.UnixMilli(), 10)
	} else {
		to = at.UTC().AppendFormat(append(to, '"'), time.RFC3339Nano+`"`)
	}
	to = append(to, `,"seq":`...)
	to = strconv.AppendInt(to, seq, 10)
	to = append(to, `,"kind":"`...)
	to = append(to, kind...)
	to = append(to, `","device_id":"`...)
	to = append(to, device...)
	return append(to, `","metrics":`...)
}

// compressor is one machine: a screw compressor that fills a receiver, loading
// and unloading to keep the pressure within its band.
type compressor struct {
	device string
	random *rand.Rand
	seq    int64 // of the last reading
	offset int64 // spreads the fleet's summaries over the minute

	state       string  // loaded, unloaded, stopped
	pressureBar float64 // of the receiver
	demand      float64 // of the plant, as a share of full delivery
	usual       float64 // what demand returns to
	speedRPM    float64
	currentA    float64
	dischargeC  float64
	motorC      float64
	hours       float64 // running
	idle        float64 // s since it was last loaded

	// since the last summary
	loadedSeconds, runningSeconds, energyKWh float64
	starts                                   int
}

func newCompressor(index int, seed uint64) compressor {
	random := rand.New(rand.NewPCG(seed, uint64(index)))
	usual := 0.3 + 0.5*random.Float64()
	return compressor{
		device:      deviceName(index),
		random:      random,
		offset:      random.Int64N(performanceEvery),
		state:       "unloaded",
		pressureBar: loadBelowBar + random.Float64()*(unloadAboveBar-loadBelowBar),
		demand:      usual,
		usual:       usual,
		speedRPM:    2975,
		currentA:    32,
		dischargeC:  72 + 8*random.Float64(),
		motorC:      60 + 10*random.Float64(),
		hours:       math.Floor(500 + 20000*random.Float64()),
	}
}

// step lives one second.
func (c *compressor) step() {
	c.seq++
	// Demand wanders slowly around what is usual for the plant.
	c.demand += 0.002*(c.usual-c.demand) + 0.008*c.random.NormFloat64()
	c.demand = min(max(c.demand, 0.02), 0.97)
	delivery := 0.0
	if c.state == "loaded" {
		delivery = c.speedRPM / 2960
	}
	c.pressureBar = max(0, c.pressureBar+fillBarPerSecond*(delivery-c.demand)*second)
	c.control()

	targetRPM, targetA, targetC := 0.0, 0.0, ambientC
	switch c.state {
	case "loaded":
		targetRPM, targetA, targetC = 2960, 64+6*(c.pressureBar-loadBelowBar), 90
	case "unloaded":
		targetRPM, targetA, targetC = 2975, 32, 74
	}
	c.speedRPM = lag(c.speedRPM, targetRPM, 3)
	c.currentA = lag(c.currentA, targetA, 2)
	c.dischargeC = lag(c.dischargeC, targetC, 120)
	c.motorC = lag(c.motorC, ambientC+0.012*c.currentA*c.currentA+0.01*c.speedRPM, 600)
	c.count()
}

// control is the pressure switch: it loads and unloads with hysteresis, and
// stops a motor that idles.
func (c *compressor) control() {
	c.idle += second
	switch {
	case c.pressureBar < loadBelowBar:
		if c.state == "stopped" {
			c.starts++
		}
		c.state = "loaded"
	case c.pressureBar > unloadAboveBar && c.state == "loaded":
		c.state = "unloaded"
	case c.state == "unloaded" && c.idle > idleLimit:
		c.state = "stopped"
	}
	if c.state == "loaded" {
		c.idle = 0
	}
}

// lag follows a target with a first-order lag; constant is its time constant
// in seconds.
func lag(value, target, constant float64) float64 {
	return target + (value-target)*math.Exp(-second/constant)
}

func (c *compressor) count() {
	if c.state == "stopped" {
		return
	}
	c.hours += second / 3600
	c.runningSeconds += second
	c.energyKWh += c.powerKW() * second / 3600
	if c.state == "loaded" {
		c.loadedSeconds += second
	}
}

// powerKW is that of a 400 V three-phase motor with a power factor of 0.86.
func (c *compressor) powerKW() float64 { return math.Sqrt(3) * 0.4 * 0.86 * c.currentA }

// kind decides what the reading tells.
func (c *compressor) kind() string {
	switch {
	case (c.seq+c.offset)%performanceEvery == 0:
		return "performance"
	case c.random.IntN(faultEvery) == 0:
		return "fault"
	default:
		return "parameters"
	}
}

// measured adds a sensor's noise.
func (c *compressor) measured(value, deviation float64) float64 {
	return max(0, value+deviation*c.random.NormFloat64())
}

func (c *compressor) appendParameters(to []byte) []byte {
	to = append(to, `{"state":"`...)
	to = append(to, c.state...)
	to = append(to, '"')
	to = appendMetric(to, "pressure_bar", c.measured(c.pressureBar, 0.004), 3)
	to = appendMetric(to, "flow_m3_min", c.measured(ratedFlow*c.demand, 0.05), 2)
	to = appendMetric(to, "motor_current_a", c.measured(c.currentA, 0.15), 2)
	to = appendMetric(to, "motor_speed_rpm", c.measured(c.speedRPM, 1.5), 0)
	to = appendMetric(to, "discharge_temp_c", c.measured(c.dischargeC, 0.05), 2)
	to = appendMetric(to, "motor_temp_c", c.measured(c.motorC, 0.05), 2)
	to = appendMetric(to, "running_hours", c.hours, 3)
	return append(to, '}')
}

// appendPerformance appends the summary since the last one and begins anew.
func (c *compressor) appendPerformance(to []byte) []byte {
	share := 0.0
	if c.runningSeconds > 0 {
		share = c.loadedSeconds / c.runningSeconds
	}
	to = append(to, `{"state":"`...)
	to = append(to, c.state...)
	to = append(to, '"')
	to = appendMetric(to, "load_ratio", share, 3)
	to = appendMetric(to, "loaded_s", c.loadedSeconds, 0)
	to = appendMetric(to, "running_s", c.runningSeconds, 0)
	to = appendMetric(to, "energy_kwh", c.energyKWh, 4)
	to = appendMetric(to, "starts", float64(c.starts), 0)
	c.loadedSeconds, c.runningSeconds, c.energyKWh, c.starts = 0, 0, 0, 0
	return append(to, '}')
}

var faults = [...]struct{ code, text string }{
	{"F012", "discharge temperature high"},
	{"F021", "motor overload"},
	{"F034", "oil filter differential pressure high"},
	{"F047", "air filter blocked"},
}

func (c *compressor) appendFault(to []byte) []byte {
	fault := faults[c.random.IntN(len(faults))]
	to = append(to, `{"code":"`...)
	to = append(to, fault.code...)
	to = append(to, `","text":"`...)
	to = append(to, fault.text...)
	to = append(to, `","state":"`...)
	to = append(to, c.state...)
	to = append(to, '"')
	to = appendMetric(to, "discharge_temp_c", c.measured(c.dischargeC, 0.05), 2)
	to = appendMetric(to, "motor_current_a", c.measured(c.currentA, 0.15), 2)
	return append(to, '}')
}

// appendMetric appends a further member of the metrics object.
func appendMetric(to []byte, name string, value float64, decimals int) []byte {
	to = append(to, ',', '"')
	to = append(to, name...)
	to = append(to, '"', ':')
	return strconv.AppendFloat(to, value, 'f', decimals, 64)
}
