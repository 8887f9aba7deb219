//go:build wasip1 && snapshot

// What a Skerry function in Go needs to begin from a snapshot: its runtime and its packages are initialised once, when
// the function is built, and no longer in each call. Needs Go 1.24. In function.toml:
//
//	build = "{go} build -trimpath -ldflags=-s -tags snapshot -buildmode=c-shared -o function.wasm ."
//	snapshot = { init = "skerry_init", renew = "skerry_renew" }
//
// `main` isn't run. An `init` function sets Handle, which answers each call.

package main

import (
	crypto "crypto/rand"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"unsafe"
)

// Call is a client's request; docs/functions.md says what its texts are (direct).
type Call struct {
	Method, Path, Query, Headers, Script, Route, Params, Client string
	Body                                                        []byte
}

// Handle returns the status, the header lines (each ended by a line break) and the body of the answer to a call.
var Handle func(call *Call) (status int, headers string, body []byte)

// What the node reads and writes must stay where it is until the call ends.
var input, output []byte

//go:wasmexport skerry_alloc
func skerryAlloc(size uint32) uint32 {
	input = make([]byte, size+1)
	return uint32(uintptr(unsafe.Pointer(&input[0])))
}

//go:wasmexport skerry_handle
func skerryHandle(_ uint32, size uint32) uint64 {
	var call Call
	at := 32
	for index, text := range []*string{
		&call.Method, &call.Path, &call.Query, &call.Headers,
		&call.Script, &call.Route, &call.Params, &call.Client,
	} {
		length := int(binary.LittleEndian.Uint32(input[4*index:]))
		*text = string(input[at : at+length])
		at += length + 1
	}
	call.Body = input[at:size]
	status, headers, body := Handle(&call)
	output = binary.LittleEndian.AppendUint32(nil, uint32(status))
	output = binary.LittleEndian.AppendUint32(output, uint32(len(headers)))
	output = append(append(output, headers...), body...)
	return uint64(uintptr(unsafe.Pointer(&output[0])))<<32 | uint64(len(output))
}

// chacha8 is the state of Go's random numbers, as internal/chacha8rand has it: math/rand, the order of maps and the
// seeds of new ones come from it. (crypto/rand asks the node each time.)
type chacha8 struct {
	numbers            [32]uint64
	seed               [4]uint64
	next, count, block uint32
}

var generator *chacha8

// skerry_init is called once, when the function is built. The runtime doesn't say where its random numbers come from, so
// it is found by the number that it has just drawn.
//
//go:wasmexport skerry_init
func skerryInit() {
	input = make([]byte, 1)
	drawn := rand.Uint64()
	for at := uintptr(8); at < uintptr(unsafe.Pointer(&input[0])); at += 8 {
		found := (*chacha8)(unsafe.Pointer(at))
		if 0 < found.next && found.next <= found.count && found.count <= 32 && found.numbers[found.next-1] == drawn {
			generator = found
			return
		}
	}
	panic("this version of Go has its random numbers elsewhere: skerry_snapshot.go can't make them anew")
}

// skerry_renew is called first in each call: what a snapshot would repeat is made anew.
//
//go:wasmexport skerry_renew
func skerryRenew() {
	var seed [32]byte
	crypto.Read(seed[:])
	*generator = *(*chacha8)(unsafe.Pointer(rand.NewChaCha8(seed)))

	var count, size uint32
	environSizesGet(unsafe.Pointer(&count), unsafe.Pointer(&size))
	os.Clearenv()
	if count == 0 {
		return
	}
	places, text := make([]uint32, count), make([]byte, size)
	environGet(unsafe.Pointer(&places[0]), unsafe.Pointer(&text[0]))
	for _, variable := range strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		name, value, _ := strings.Cut(variable, "=")
		os.Setenv(name, value)
	}
}

//go:wasmimport wasi_snapshot_preview1 environ_sizes_get
func environSizesGet(count, size unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 environ_get
func environGet(places, text unsafe.Pointer) uint32
