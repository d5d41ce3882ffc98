package httpapi

import (
	"compress/gzip"
	"io"
	"strconv"
	"strings"
	"sync"
)

// zippers are writers to use again: one takes some hundred KiB to make. The rows of a feed repeat themselves so much that
// the fastest level does.
var zippers = sync.Pool{New: func() any {
	z, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil { // no level that gzip knows makes it fail
		return gzip.NewWriter(io.Discard)
	}
	return z
}}

// acceptsGzip says whether a client with these Accept-Encoding headers likes gzip at least as well as no encoding (RFC 9110,
// 12.5.3). A weight that is none counts as a refusal.
func acceptsGzip(headers []string) bool {
	zip, identity, other := -1.0, -1.0, -1.0
	for item := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		name, parameters, _ := strings.Cut(item, ";")
		q := weight(parameters)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "gzip", "x-gzip":
			zip = max(zip, q)
		case "identity":
			identity = q
		case "*":
			other = q
		}
	}
	if zip < 0 {
		zip = other
	}
	return zip > 0 && zip >= identity
}

// weight returns q of an encoding's parameters, 1 where there is none.
func weight(parameters string) float64 {
	for p := range strings.SplitSeq(parameters, ";") {
		name, value, given := strings.Cut(strings.TrimSpace(p), "=")
		if !given || !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
