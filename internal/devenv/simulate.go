package devenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// SimulateConfig says what simulated devices publish. Broker and Devices are
// required.
type SimulateConfig struct {
	Broker      string  // tcp://host:port or ssl://host:port, with user:password@ where needed
	ClientID    string  // prefix, to which a random part is added; "": plenum-simulate
	Devices     int     // cmp-00001, cmp-00002, …, each to its topic telemetry/cmp-00001
	FirstDevice int     // number of the first device, for several simulations at once; 0: 1
	Rate        float64 // readings/s over all devices; 0: as fast as the broker takes them
	Total       int     // readings; 0: until ctx ends, or the whole file
	QoS         byte    // 0 or 1
	Seed        uint64  // same seed, same signals; the times are those of the clock
	File        string  // a CSV file to replay once instead of generated signals
	MaxInFlight int     // readings without a PUBACK, 1…65535; 0: 1000

	// Record gets a line for each reading whose PUBACK arrived, in that order:
	// device id, space, seq. nil: no record.
	Record io.Writer
	// Now is the clock of generated readings; nil: time.Now.
	Now func() time.Time
}

// Validate joins all faults, each naming its key and value.
func (c SimulateConfig) Validate() error {
	var faults []error
	fault := func(format string, values ...any) { faults = append(faults, fmt.Errorf(format, values...)) }
	if _, err := parseBroker(c.Broker); err != nil {
		faults = append(faults, err)
	}
	if c.Devices < 1 {
		fault("devices: %d, must be at least 1", c.Devices)
	}
	if c.FirstDevice < 0 || c.FirstDevice > maxDevice-c.Devices+1 {
		fault("first device: %d, must be 1 to %d, less the other devices", c.FirstDevice, maxDevice)
	}
	if !(c.Rate >= 0) || math.IsInf(c.Rate, 1) {
		fault("rate: %v, must be 0 or more readings a second", c.Rate)
	}
	if c.Total < 0 {
		fault("total: %d, must be 0 or more readings", c.Total)
	}
	if c.QoS > 1 {
		fault("qos: %d, must be 0 or 1", c.QoS)
	}
	if c.MaxInFlight < 0 || c.MaxInFlight > math.MaxUint16 {
		fault("max in flight: %d, must be 0 to %d", c.MaxInFlight, math.MaxUint16)
	}
	return errors.Join(faults...)
}

// SimulateStats is how far a simulation has come.
type SimulateStats struct {
	Sent         int64 // readings handed to the connection; a resend does not count
	Acknowledged int64 // readings whose PUBACK arrived; stays 0 with QoS 0
	Reconnects   int64 // connections made again after a loss
	Lost         error // why there is no connection now; nil while there is one
}

// reading is one message to publish.
type reading struct {
	device  string
	seq     int64
	payload []byte // valid until the next call of the source
}

// source yields readings, and io.EOF after the last.
type source interface {
	next(now time.Time) (reading, error)
	io.Closer
}

const (
	maxDevice        = 1 << 30 // number of the last device
	progressInterval = time.Second
	drainLimit       = 10 * time.Second       // for the last PUBACKs after ctx has ended
	debtLimit        = time.Second            // of a schedule: what is missed beyond is not made up
	paceGrain        = 500 * time.Microsecond // shorter waits are not worth a timer
)

// Simulate publishes readings until Total, the end of the file, or the end of
// ctx, then waits for what is not acknowledged yet. It returns nil when it did
// what was asked, which for no Total and no File is to run until ctx ends. A
// broker that cannot be reached at the start is an error; one that goes away
// later is reconnected to for as long as ctx lives, and gets again what it has
// not acknowledged. progress, if not nil, is called about every second and at
// the end, from the caller's goroutine.
func Simulate(ctx context.Context, config SimulateConfig, progress func(SimulateStats)) (SimulateStats, error) {
	if err := config.Validate(); err != nil {
		return SimulateStats{}, err
	}
	if config.MaxInFlight == 0 {
		config.MaxInFlight = 1000
	}
	config.FirstDevice = max(config.FirstDevice, 1)
	if config.Now == nil {
		config.Now = time.Now
	}
	readings, err := newSource(config)
	if err != nil {
		return SimulateStats{}, err
	}
	defer readings.Close() // read-only
	patient, cancel := outlast(ctx, drainLimit)
	defer cancel()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	s := &simulation{config: config, readings: readings, tick: tick.C, progress: progress}
	if s.publisher, err = newPublisher(ctx, config); err != nil {
		return SimulateStats{}, err
	}
	intakeErr := s.publishAll(ctx)
	err = errors.Join(intakeErr, s.drain(patient), s.publisher.close())
	s.report()
	return s.publisher.stats(), err
}

func newSource(config SimulateConfig) (source, error) {
	if config.File != "" {
		return openReplay(config.File, config.FirstDevice, config.Devices)
	}
	return newFleet(config.FirstDevice, config.Devices, config.Seed), nil
}

// outlast derives a context that ends the given time after its parent.
func outlast(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(limit, func() { cancel(fmt.Errorf("no longer than %v after the end", limit)) })
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() {
		stop()
		cancel(context.Canceled)
	}
}

// simulation is a running Simulate.
type simulation struct {
	config    SimulateConfig
	readings  source
	publisher *publisher
	tick      <-chan time.Time
	progress  func(SimulateStats)
}

func (s *simulation) report() {
	if s.progress != nil {
		s.progress(s.publisher.stats())
	}
}

// publishAll publishes the readings at their rate.
func (s *simulation) publishAll(ctx context.Context) error {
	start := time.Now()
	for n := 0; s.config.Total == 0 || n < s.config.Total; n++ {
		err := s.pace(ctx, &start, n)
		if err == nil {
			err = s.publishNext(ctx)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && s.config.Total != 0:
			return fmt.Errorf("%q has %d rows, total asks for %d", s.config.File, n, s.config.Total)
		case errors.Is(err, io.EOF), ctx.Err() != nil && s.config.Total == 0 && s.config.File == "":
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("simulation ended early, after %d readings: %w", n, err)
		default:
			return err
		}
	}
	return nil
}

// pace waits until reading n is due.
func (s *simulation) pace(ctx context.Context, start *time.Time, n int) error {
	if s.config.Rate == 0 {
		return nil
	}
	due := start.Add(time.Duration(float64(n) / s.config.Rate * float64(time.Second)))
	wait := time.Until(due)
	if wait < -debtLimit {
		*start = start.Add(-wait - debtLimit)
	}
	if wait < paceGrain {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	_, err := s.await(ctx, timer.C, nil)
	return err
}

// publishNext publishes the source's next reading once the window has room.
func (s *simulation) publishNext(ctx context.Context) error {
	id, err := s.room(ctx)
	if err != nil {
		return err
	}
	next, err := s.readings.next(s.config.Now())
	if err != nil {
		s.publisher.release(id)
		return err
	}
	s.publisher.publish(id, next)
	return nil
}

// room takes a packet id from the window, 0 with QoS 0, which has none.
func (s *simulation) room(ctx context.Context) (uint16, error) {
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-s.tick:
		s.report()
	case <-s.publisher.lost():
		if err := s.reconnect(ctx); err != nil {
			return 0, err
		}
	default:
	}
	if s.config.QoS == 0 {
		return 0, nil
	}
	select {
	case id := <-s.publisher.free:
		return id, nil
	default:
		return s.await(ctx, nil, s.publisher.free)
	}
}

// await sends what is buffered and waits for the time or for a free packet id.
// Meanwhile it reports progress and keeps the connection up.
func (s *simulation) await(ctx context.Context, due <-chan time.Time, free <-chan uint16) (uint16, error) {
	s.publisher.flush()
	for {
		select {
		case <-due:
			return 0, nil
		case id := <-free:
			return id, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-s.tick:
			s.report()
		case <-s.publisher.lost():
			if err := s.reconnect(ctx); err != nil {
				return 0, err
			}
		}
	}
}

// reconnect tries until the broker is back, then sends again what it has not
// acknowledged.
func (s *simulation) reconnect(ctx context.Context) error {
	s.publisher.abandon()
	for attempt := 0; ; attempt++ {
		if err := s.publisher.reconnect(ctx); err == nil {
			return nil
		}
		timer := time.NewTimer(backOff(attempt))
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-s.tick:
				s.report()
			case <-ctx.Done():
				timer.Stop()
				return context.Cause(ctx)
			}
		}
	}
}

// drain waits until every reading is acknowledged: all packet ids are free.
func (s *simulation) drain(ctx context.Context) error {
	s.publisher.flush()
	if s.config.QoS == 0 {
		return nil
	}
	for range s.config.MaxInFlight {
		if _, err := s.await(ctx, nil, s.publisher.free); err != nil {
			stats := s.publisher.stats()
			return fmt.Errorf("%d readings were not acknowledged: %w",
				stats.Sent-stats.Acknowledged, errors.Join(err, stats.Lost))
		}
	}
	return nil
}
