package access

import (
	"testing"
	"testing/synctest"
)

// Members who set PINs take no more memory at once than people who guess them.
func TestPINsAreHashedAFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := hashing
		hashing = make(chan struct{}, pinWork) // of the bubble
		defer func() { hashing = before }()
		for range pinWork {
			hashing <- struct{}{}
		}
		done := make(chan error)
		go func() {
			_, err := HashPIN("123456")
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("one more was hashed: %v", err)
		default:
		}
		<-hashing
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
