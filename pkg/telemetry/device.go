package telemetry

import (
	"slices"
	"strings"
)

// Device returns the device that the first matching template names in topic, and false where none matches or it names none.
func (d *Decoder) Device(topic string) (string, bool) {
	n, wrong := d.name(topic)
	return n.device, wrong == "" && n.hasDevice
}

// TopicWhole says whether a Reject's topic can be the one that was published: one that was too long ends in a mark. A topic
// that was published with that very end is taken for a cut one.
func TopicWhole(topic string) bool { return !strings.HasSuffix(topic, mark) }

// Codes returns every code, in the order of judgement.
func Codes() []Code {
	return []Code{
		TooLarge, NotUTF8, NotJSON, TopicMismatch, MissingField, BadValue, BadType, BadTime, DeviceMismatch, Conflict, RejectedByDatabase,
	}
}

// Known says whether c is one of the codes.
func (c Code) Known() bool { return slices.Contains(Codes(), c) }
