// Package telemetry defines a reading, and turns a device's message into readings.
//
// A message's payload is one element, a JSON object, or an array of them. Each element becomes a Reading, or a Reject
// that says why not; a message that cannot be read at all becomes one Reject. Decoder.Decode is a pure function of the
// Config and the Message: it reads no clock, keeps nothing between messages, and gives the same for the same input.
//
// # Invariants
//
//   - Nothing disappears: a message becomes at least one reading or reject, and each element of an array is counted in one.
//   - A Reading can be stored: its texts are UTF-8 without NUL and within their limits, its metrics are a JSON object that
//     PostgreSQL's jsonb accepts. (A jsonb field is text again when read: 5e-324 then takes 328 bytes.)
//   - Time and memory are linear in the payload, whatever it holds: it is scanned once, without recursion, and only to
//     describe a fault are parts of it scanned again, for at most MaxSingleRejects elements.
//   - Reading.Metrics and Reject.Raw alias the payload, and a DeviceID or Kind may alias the topic: neither may change
//     while the batch is in use.
//
// # Order of judgement
//
// The first fault found decides the code. Of the message as a whole, which is then one reject:
//
//  1. too_large: more than Config.MaxPayloadBytes.
//  2. not_utf8: the payload is not valid UTF-8.
//  3. not_json: empty, or not exactly one JSON text with optional white space around it (RFC 8259). What is JSON here is
//     what encoding/json's Valid accepts, and also any depth of nesting, where that stops at 10,000.
//  4. topic_mismatch: no template matches the topic, or a level that the first matching one names is empty.
//  5. missing_field: an array without elements.
//
// Of each element, in this order:
//
//  1. bad_value, anywhere in it, keys and replaced duplicates included, the first in the text: \u0000; half a surrogate
//     pair; a number that is beyond float64, or not zero but would become zero, or is written with more than MaxNumberBytes bytes
//     or an exponent beyond ±MaxExponent (PostgreSQL's numeric refuses more than 16,383 digits behind the point, of a zero
//     too: 0e-16384); nesting deeper than MaxDepth, the element itself being 1.
//  2. bad_type: it is no object.
//  3. Its time, metrics, seq, device id and kind, in this order.
//
// # Fields
//
// JSON pointers (RFC 6901) lead to the fields; keys are compared unescaped. Of a repeated key the last value counts, as in
// jsonb, with all that is below it. JSON null is as good as absent, and absent is missing_field where a field is required.
//
//   - time, required except with UnitArrival, which does not read it: an integer in Config.TimeUnit or, in every unit, an
//     RFC 3339 string; with UnitRFC3339 only that. Other types are bad_type. bad_time: a number with a point or an exponent,
//     another string, an instant before 2000-01-01T00:00:00Z or more than 24 hours after Message.ReceivedAt. It is then
//     truncated to microseconds.
//   - metrics, required: an object, else bad_type.
//   - seq: an integer, written without point or exponent, from 0 to MaxSeq, else bad_value; other types are bad_type.
//   - device id, kind: strings, else bad_type, of 1 to MaxDeviceIDBytes and MaxKindBytes bytes, else bad_value. A level of the
//     topic that names one is judged alike, after the payload's; bad_value also if it is not UTF-8 or has NUL. If topic and payload
//     both name one they must agree, else device_mismatch, of a kind topic_mismatch. No device id is missing_field; no kind is KindParameters.
//
// # Rejects
//
// Up to MaxSingleRejects rejected elements of a message are rejects of their own, Raw being the element's bytes. If there
// are more, they are one instead, Raw being the whole message, with the first one's code and a detail that counts them. The
// other elements are readings either way. A detail names the element of an array, from 0, the field, by its pointer, and the value,
// both cut to 64 bytes: "element 3: /ts: 13 is before 2000-01-01".
//
// # Topic templates
//
// A template is an MQTT filter in which a level may also be {device_id} or {kind}, each at most once: they match
// any one level, as + does, and name it. As in MQTT 3.1.1 (section 4.7), a trailing # matches any number of further levels, none
// included, and no template that begins with a wildcard or a name matches a topic that begins with $. The first template that matches decides.
package telemetry
