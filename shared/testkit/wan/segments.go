package wan

import "encoding/binary"

// A packet that was read from a TUN device is a struct virtio_net_hdr and an IP packet.
// With TCP segmentation left to the device, that IP packet may be a burst: many
// segments under one header, cut at gsoSize. These functions know as much of IPv4 and
// TCP as it takes to treat such a burst as its segments.

// The fields of struct virtio_net_hdr, in the byte order of the machine.
const (
	flagNeedsSum = 1 // in byte 0: the checksum from sumStart on is still to be made
	gsoTCP4      = 1 // in byte 1

	vnetGSO, vnetGSOSize, vnetSumStart, vnetSumOffset = 1, 4, 6, 8
)

// burst describes a packet of several segments.
type burst struct {
	ip, tcp int // lengths of the headers
	size    int // of a segment's payload
	payload int // of all
}

// burstOf is false for a packet that is one segment, or nothing that can be cut.
func burstOf(b []byte) (burst, bool) {
	if len(b) < virtualHeader+40 || b[vnetGSO]&^0x80 != gsoTCP4 || b[virtualHeader]>>4 != 4 {
		return burst{}, false
	}
	ip := b[virtualHeader:]
	d := burst{ip: int(ip[0]&15) * 4, size: int(binary.NativeEndian.Uint16(b[vnetGSOSize:]))}
	if d.ip < 20 || len(ip) < d.ip+20 || d.size == 0 {
		return burst{}, false
	}
	d.tcp = int(ip[d.ip+12]>>4) * 4
	d.payload = len(ip) - d.ip - d.tcp
	return d, d.tcp >= 20 && d.payload > d.size
}

// segments is how many segments a packet is on the wire.
func segments(b []byte) int {
	d, ok := burstOf(b)
	if !ok {
		return 1
	}
	return (d.payload + d.size - 1) / d.size
}

// wireSize is how many bytes those are, every one with its headers.
func wireSize(b []byte) int {
	d, ok := burstOf(b)
	if !ok {
		return len(b) - virtualHeader
	}
	return d.payload + segments(b)*(d.ip+d.tcp)
}

// piece copies the segments from one to another (not included) of a packet.
func piece(b []byte, from, to int) []byte {
	d, ok := burstOf(b)
	if !ok || from == 0 && to == segments(b) {
		return append([]byte(nil), b...)
	}
	head := virtualHeader + d.ip + d.tcp
	begin, end := from*d.size, min(to*d.size, d.payload)
	out := append(append(make([]byte, 0, head+end-begin), b[:head]...), b[head+begin:head+end]...)
	ip := out[virtualHeader:]
	tcp := ip[d.ip:]

	was, is := binary.BigEndian.Uint16(ip[2:]), uint16(len(ip))
	binary.BigEndian.PutUint16(ip[2:], is)
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(from))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:d.ip])))

	binary.BigEndian.PutUint32(tcp[4:], binary.BigEndian.Uint32(tcp[4:])+uint32(begin))
	const fin, psh, cwr = 1, 8, 128
	if end < d.payload {
		tcp[13] &^= fin | psh // they belong to the last segment
	}
	if from > 0 {
		tcp[13] &^= cwr // it belongs to the first
	}
	// The checksum holds the sum of the pseudo header, where the length is part of it;
	// the receiver trusts flagNeedsSum for the rest.
	pseudo := uint32(binary.BigEndian.Uint16(tcp[16:])) + uint32(^was) + uint32(is)
	binary.BigEndian.PutUint16(tcp[16:], fold(pseudo))
	if to-from == 1 {
		out[vnetGSO] = 0
		binary.NativeEndian.PutUint16(out[vnetGSOSize:], 0)
	}
	return out
}

// sum adds up 16-bit words (RFC 1071).
func sum(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
