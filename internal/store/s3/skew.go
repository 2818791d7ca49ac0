package s3

import (
	"net/http"
	"sync/atomic"
	"time"
)

// dated notes what the Date header of every answer says of the server's clock.
type dated struct {
	http.RoundTripper
	now  func() time.Time
	skew atomic.Pointer[time.Duration]
}

func (d *dated) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := d.RoundTripper.RoundTrip(request)
	if err != nil {
		return response, err
	}
	if at, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		skew := at.Sub(d.now().Truncate(time.Second))
		d.skew.Store(&skew)
	}
	return response, nil
}

// Skew implements store.Dated.
func (s *Store) Skew() (skew time.Duration, known bool) {
	if skew := s.dated.skew.Load(); skew != nil {
		return *skew, true
	}
	return 0, false
}
