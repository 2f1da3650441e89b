package images

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
)

// fsFile is what the archive reader wants.
type fsFile = io.ReadCloser

// openMaybeCompressed opens a file and, if it begins like gzip, unpacks it on the way.
func openMaybeCompressed(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the archive: %w", err)
	}
	r := bufio.NewReader(f)
	if magic, err := r.Peek(2); err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return readCloser{r, f}, nil //nolint:nilerr // too short to be compressed
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("unpack the archive: %w", err)
	}
	return readCloser{z, f}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}
