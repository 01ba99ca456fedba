// Package audit owns the record of who did what on one relay: append-only files of
// JSON lines, synced before what they record is acknowledged, rotated by size, and
// read back in order. What one caller causes again and again is counted rather than
// written, and each team has a share of the history: no flood takes away what others
// did.
//
// It never decides what is worth recording, never leaves out what opens, closes,
// grants or revokes, never holds a secret (texts are redacted on their way in), and
// never touches the files of another relay.
package audit
