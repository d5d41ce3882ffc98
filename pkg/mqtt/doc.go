// Package mqtt receives messages over MQTT 3.1.1 and acknowledges each only when its receiver says that it is stored.
//
// # Model
//
// A [Client] holds a fixed number of connections, each with a stable client id and a persistent session. A connection is a
// loop: it dials, subscribes, waits until that is lost, backs off, and dials again. One turn of the loop is an epoch: one
// network connection, one paho client, one queue of receipts. paho neither reconnects nor acknowledges.
//
//	socket ─▶ conn: length checked, room in the window ─▶ paho: decoding, pings ─▶ Handler
//	socket ◀─ conn: coalesced writes ◀─ queue: done prefix ◀─ Receipt.Done
//
// # Invariants
//
//   - Nothing is acknowledged before [Receipt.Done]: with QoS 1 the sender keeps a message until its PUBACK
//     (MQTT 4.3.2), so what is not done is delivered again, to this process or the next.
//   - Acknowledgements leave in the order of receipt (MQTT-4.6.0-2), whatever the order of Done: a message that is done waits
//     for those before it. QoS 0 messages take part in the order and send nothing.
//   - An acknowledgement leaves on the connection that delivered the message, or not at all. A packet identifier
//     means something else on the next one, where the broker sends the message again (MQTT-4.4.0-1).
//   - What a connection holds is bounded, whatever the broker sends and however long storing takes. A window counts
//     messages and bytes from before a packet is allocated until it is acknowledged, over the ends of epochs. When it is full,
//     reading stops and TCP holds the broker back; MQTT 3.1.1 has no receive maximum. When that lasts for half the
//     keep-alive, the epoch ends with its session kept, and the next begins when half the window is free.
//   - No packet longer than the limit is allocated. The broker will deliver such a message at each reconnect, so the
//     limit stands well above the largest payload that the receiver takes and quarantines.
//   - A filter that the broker refuses (SUBACK 0x80, MQTT-3.9.3) ends the epoch with an error: a connection that
//     receives only part of what it was asked to is never called connected.
//   - The client disconnects in good order: acknowledgements, then DISCONNECT, then nothing (MQTT-3.14.4-2), and it
//     reads until the broker has closed, because closing a socket with unread input would reset the connection and
//     could lose acknowledgements on their way.
//
// All filters are subscribed to in every epoch, also in a resumed session. The broker then sends retained messages again
// (MQTT-3.8.4-3); receivers tell repeats by content, never by packet identifier or DUP flag.
package mqtt
