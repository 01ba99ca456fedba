package edge_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/edge"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestServerSentEventsOneByOne(t *testing.T) {
	for _, front := range []string{"http1", "http2"} {
		t.Run(front, func(t *testing.T) {
			w := newWorld(t, func(c *edge.Config) {
				if front == "http2" {
					c.PathFallback = "tls"
				}
			})
			step := make(chan struct{})
			port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Type", "text/event-stream")
				rw.(http.Flusher).Flush()
				for i := range 5 {
					select {
					case <-step:
					case <-r.Context().Done():
						return
					}
					fmt.Fprintf(rw, "data: %d\n\n", i)
					rw.(http.Flusher).Flush()
				}
			})
			_, seg := w.tunnel(port, nil)
			resp := w.get(seg, "/events") // the header comes before any event
			if want := map[string]int{"http1": 1, "http2": 2}[front]; resp.ProtoMajor != want {
				t.Fatalf("the front speaks %s", resp.Proto)
			}
			br := bufio.NewReader(resp.Body)
			for i := range 5 {
				step <- struct{}{}
				line, err := br.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("event %d: %q %v", i, line, err)
				}
				br.ReadString('\n')
			}
		})
	}
}

func TestTrailersBothWays(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(rw, "%s", body)
		rw.(http.Flusher).Flush()
		rw.Header().Set("X-Sum", r.Trailer.Get("X-In"))
		rw.Header().Set(http.TrailerPrefix+"X-Late", "2")
	})
	_, seg := w.tunnel(port, nil)
	r := w.request("POST", seg, "/", io.MultiReader(strings.NewReader("body")))
	r.ContentLength = -1
	r.Trailer = http.Header{"X-In": {"1"}}
	resp := w.do(r)
	if got := text(t, resp.Body); got != "body" {
		t.Errorf("body %q", got)
	}
	if resp.Trailer.Get("X-Sum") != "1" || resp.Trailer.Get("X-Late") != "2" {
		t.Errorf("the user got trailers %v", resp.Trailer)
	}
}

func TestInformationalAnswers(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 102 Processing\r\nX-No: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	_, seg := w.tunnel(port, nil)
	var codes []string
	r := w.request("GET", seg, "/", nil)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		codes = append(codes, fmt.Sprint(code, h.Get("Link")))
		return nil
	}}))
	resp := w.do(r)
	if body := text(t, resp.Body); body != "ok" || fmt.Sprint(codes) != "[103 </s.css>; rel=preload]" && fmt.Sprint(codes) != "[103</s.css>; rel=preload]" {
		t.Errorf("the user saw %v and %q", codes, body)
	}
	if resp.Header.Get("Link") != "" {
		t.Error("the hint's header stuck to the answer")
	}
}

func TestExpectContinue(t *testing.T) {
	w := newWorld(t, nil)
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			rw.WriteHeader(413)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	})
	_, seg := w.tunnel(port, nil)
	send := func(path string) (*bufio.Reader, net.Conn) {
		conn, br := w.dial()
		fmt.Fprintf(conn, "POST /tunnel/%s%s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", seg, path, w.public.Host)
		return br, conn
	}
	br, conn := send("/take")
	line, err := br.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatalf("instead of 100 Continue: %q %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(conn, "12345")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 || text(t, resp.Body) != "5" {
		t.Fatalf("after the body: %v %v", resp, err)
	}
	br, _ = send("/refuse")
	resp, err = http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 413 || !resp.Close {
		t.Fatalf("the app's 413 came as %v %v", resp, err)
	}
}

func TestEarlyAnswerToUpload(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
		}
	})
	_, seg := w.tunnel(port, nil)
	conn, br := w.dial()
	fmt.Fprintf(conn, "POST /tunnel/%s/ HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", seg, w.public.Host)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 413 || text(t, resp.Body) != "big" {
		t.Fatalf("%v %v", resp, err)
	}
	if !resp.Close {
		t.Error("the connection stays open in the middle of a request: what follows could be taken for the next one")
	}
	// What the user still sends is no new request.
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("the rest of the body was answered: %q", rest)
	}
}

func TestLargeBodiesInConstantMemory(t *testing.T) {
	const size = 64 << 20
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprintf("chunked=%v", chunked), func(t *testing.T) {
			w := newWorld(t, nil)
			port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
				h := sha256.New()
				n, err := io.Copy(h, r.Body)
				if err != nil || n != size {
					t.Errorf("the app got %d bytes: %v", n, err)
				}
				if !chunked {
					rw.Header().Set("Content-Length", strconv.Itoa(size))
				}
				rw.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
				io.Copy(rw, io.LimitReader(pattern{}, size))
			})
			_, seg := w.tunnel(port, nil)
			r := w.request("PUT", seg, "/", io.LimitReader(pattern{}, size))
			r.ContentLength = size
			if chunked {
				r.ContentLength = -1
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			resp := w.do(r)
			h := sha256.New()
			n, err := io.Copy(h, resp.Body)
			if err != nil || n != size || resp.Header.Get("X-Sum") != fmt.Sprintf("%x", h.Sum(nil)) {
				t.Errorf("%d bytes came back: %v", n, err)
			}
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 24<<20 {
				t.Errorf("moving 128 MiB grew the heap by %d MiB", grown>>20)
			}
		})
	}
}

type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i * 7)
	}
	return len(p), nil
}

func TestBothWaysAtOnce(t *testing.T) {
	for _, front := range []string{"http1", "http2"} {
		t.Run(front, func(t *testing.T) {
			w := newWorld(t, func(c *edge.Config) {
				if front == "http2" {
					c.PathFallback = "tls"
				}
			})
			port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
				rc := http.NewResponseController(rw)
				_ = rc.EnableFullDuplex()
				br := bufio.NewReader(r.Body)
				for {
					line, err := br.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(rw, "echo %s", line)
					_ = rc.Flush()
				}
			})
			_, seg := w.tunnel(port, nil)
			in, feed := io.Pipe()
			r := w.request("POST", seg, "/", in)
			got := make(chan *http.Response, 1)
			go func() {
				resp, err := w.client().Do(r)
				if err != nil {
					t.Error(err)
				}
				got <- resp
			}()
			fmt.Fprintln(feed, "one")
			resp := <-got
			if resp == nil {
				return
			}
			defer resp.Body.Close()
			br := bufio.NewReader(resp.Body)
			for _, word := range []string{"one", "two", "three"} {
				line, err := br.ReadString('\n')
				if err != nil || line != "echo "+word+"\n" {
					t.Fatalf("%q %v", line, err)
				}
				if word != "three" {
					fmt.Fprintln(feed, map[string]string{"one": "two", "two": "three"}[word])
				}
			}
			feed.Close()
			if rest := text(t, br); rest != "" {
				t.Errorf("rest %q", rest)
			}
		})
	}
}

func TestTruncatedAnswerIsNotWhole(t *testing.T) {
	w := newWorld(t, nil)
	port := w.rawApp(func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if r.URL.Path == "/chunked" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		} else {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
		}
	})
	_, seg := w.tunnel(port, nil)
	for _, path := range []string{"/chunked", "/length"} {
		resp := w.get(seg, path)
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the cut answer looks whole: %q", path, body)
		}
	}
}

func TestUserLeavesAndAppIsTold(t *testing.T) {
	w := newWorld(t, nil)
	gone := make(chan struct{})
	port := w.appFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	})
	_, seg := w.tunnel(port, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r := w.request("GET", seg, "/", nil).WithContext(ctx)
	resp := w.do(r)
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(testkit.Patience):
		t.Error("the app was not told that the user left")
	}
}
