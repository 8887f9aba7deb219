//go:build wasip1

// The packages are initialised at build; Handle runs in each call. The order of maps is a call's own.

package main

import (
	"fmt"
	old "math/rand"
	"math/rand/v2"
	"os"
	"time"
)

var table = map[int]string{}
var calls int
var begun = time.Now()

func init() {
	for i := range 100000 {
		table[i] = fmt.Sprint(i)
	}
	Handle = handle
}

func handle(call *Call) (int, string, []byte) {
	calls++
	order := ""
	for key := range map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true, 6: true, 7: true, 8: true, 9: true} {
		order += fmt.Sprint(key)
	}
	random := fmt.Sprintf("%x-%x-%x", rand.Uint64(), old.Int63(), table[7])
	body := fmt.Sprintf("left %s\ncalls %d\nvariable %s\nrandom %s\n", table[99999], calls, os.Getenv("WORD"), random)
	return 200, "Content-Type: text/plain\n", []byte(body + fmt.Sprintf("order %s\nbegun %s\nbody %s\n", order, begun.UTC(), call.Body))
}

func main() {}
