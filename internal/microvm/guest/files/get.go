package files

import (
	"errors"
	"fmt"
	"os"
)

// Get opens a file that lies below one of the bases, and tells how many bytes of it to read: all, or limit if that is not 0 and less. A container
// may have written there: a link out of the base is not followed.
func Get(target string, limit int64, bases ...string) (*os.File, int64, error) {
	for _, base := range bases {
		name, err := below(base, target)
		if err != nil {
			continue
		}
		file, err := os.OpenInRoot(base, name)
		if err != nil {
			return nil, 0, err
		}
		info, err := file.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New(target + " is no file")
		}
		if err != nil {
			_ = file.Close()
			return nil, 0, err
		}
		size := info.Size()
		if limit > 0 {
			size = min(size, limit)
		}
		return file, size, nil
	}
	return nil, 0, fmt.Errorf("%s is not below any of %v", target, bases)
}
