// Package audit owns the record of who did what on one relay: an append-only file
// of JSON lines, synced before what it records is acknowledged, rotated by size,
// and read back in order.
//
// It never decides what is worth recording, never holds a secret (texts are
// redacted on their way in), and never touches the files of another relay.
package audit
