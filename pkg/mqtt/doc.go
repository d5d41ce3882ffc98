// Package mqtt receives messages over MQTT 3.1.1 and acknowledges each only when its receiver says that it is stored.
//
// # Model
//
// A [Client] holds a fixed number of connections, each with a stable client id and a persistent session. A connection is a
// loop: it dials, subscribes, waits until that is lost, backs off, and dials again. One turn of the loop is an epoch: one
// network connection, one paho client, one queue of receipts. paho neither reconnects nor acknowledges.
//
//	socket ─▶ conn: length checked or cut, room in the window ─▶ paho: decoding, pings ─▶ Handler
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
//   - No packet longer than the limit is allocated. Of a message that is longer, the receiver gets the beginning and the
//     length, once all of it has come, and acknowledges it like any other: to refuse it would stop the connection for
//     good, since the broker delivers it again on each. The limit stands above the largest payload that the
//     receiver takes, so that such a message is one to quarantine.
//   - What [Sessions] keeps of a client id covers what the broker's session is subscribed to, at each moment: the union of old
//     and new filters is kept before SUBSCRIBE, and the wanted alone only when the others are left. So a start is right
//     wherever the one before was killed. Old filters are left after new ones are granted, so that no message falls
//     between them; nothing is written where nothing changed.
//   - A filter that the broker refuses (SUBACK 0x80, MQTT-3.9.3) ends the epoch with an error: a connection that
//     receives only part of what it was asked to is never called connected.
//   - The client disconnects in good order: acknowledgements, then DISCONNECT, then nothing (MQTT-3.14.4-2), and it
//     reads until the broker has closed, because closing a socket with unread input would reset the connection and
//     could lose acknowledgements on their way.
//   - A broker is taken for gone when nothing came for two keep-alives while the socket was being read; not when the
//     answer to a ping stands behind a long message, or behind many that storing holds up. Pings go on meanwhile.
//
// A message that is not done holds up all behind it. For longer than Config.StallAfter it is named: in the log, in
// [ConnectionStatus], as a metric.
//
// [Drain] empties and ends the session of a client id that is no longer used, with the same epochs.
//
// All filters are subscribed to in every epoch, also in a resumed session. The broker then sends retained messages again
// (MQTT-3.8.4-3); receivers tell repeats by content, never by packet identifier or DUP flag.
package mqtt
