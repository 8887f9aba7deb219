// An Extism plug-in of Go's own compiler, by the imports themselves: Extism's PDK for Go comes from no registry that the
// tests use. The same exports as plugin.rs and ../plugin.ts.
package main

import (
	"strconv"
	"strings"
	"time"
)

//go:wasmimport extism:host/env alloc
func alloc(length uint64) uint64

//go:wasmimport extism:host/env free
func free(handle uint64)

//go:wasmimport extism:host/env length
func length(handle uint64) uint64

//go:wasmimport extism:host/env load_u8
func load(at uint64) uint32

//go:wasmimport extism:host/env store_u8
func store(at uint64, value uint32)

//go:wasmimport extism:host/env input_length
func inputLength() uint64

//go:wasmimport extism:host/env input_load_u8
func inputLoad(at uint64) uint32

//go:wasmimport extism:host/env output_set
func outputSet(handle uint64, length uint64)

//go:wasmimport extism:host/env error_set
func errorSet(handle uint64)

//go:wasmimport extism:host/env config_get
func configGet(key uint64) uint64

//go:wasmimport extism:host/env var_get
func varGet(key uint64) uint64

//go:wasmimport extism:host/env var_set
func varSet(key uint64, value uint64)

//go:wasmimport extism:host/env log_warn
func logWarn(message uint64)

var begun = 0

func init() { begun = int(inputLength()) + 7 }

func block(data []byte) uint64 {
	made := alloc(uint64(len(data)))
	for at, value := range data {
		store(made+uint64(at), uint32(value))
	}
	return made
}

func text(data string) uint64 { return block([]byte(data)) }

func content(handle uint64) []byte {
	data := make([]byte, length(handle))
	for at := range data {
		data[at] = byte(load(handle + uint64(at)))
	}
	return data
}

func input() []byte {
	data := make([]byte, inputLength())
	for at := range data {
		data[at] = byte(inputLoad(uint64(at)))
	}
	return data
}

// Its own block is freed before the host reads it, as by Extism's PDK for Go.
func output(data []byte) int32 {
	made := block(data)
	outputSet(made, uint64(len(data)))
	free(made)
	return 0
}

//go:wasmexport echo
func echo() int32 { return output(input()) }

//go:wasmexport count_vowels
func countVowels() int32 {
	count := 0
	for _, letter := range string(input()) {
		if strings.ContainsRune("aeiouAEIOU", letter) {
			count++
		}
	}
	return output([]byte(`{"count":` + strconv.Itoa(count) + `,"begun":` + strconv.Itoa(begun) + "}"))
}

//go:wasmexport everything
func everything() int32 {
	thing := string(content(configGet(text("thing"))))
	varSet(text("a"), text("this is var a"))
	a := string(content(varGet(text("a"))))
	varSet(text("a"), 0)
	if varGet(text("a")) != 0 {
		a += ", left"
	}
	logWarn(text("a warning"))
	told := make(chan string)
	go func() { time.Sleep(time.Millisecond); told <- thing + ", " + a }()
	return output([]byte(<-told))
}

//go:wasmexport fail
func fail() int32 { return 3 }

//go:wasmexport complain
func complain() int32 {
	errorSet(text("what it says"))
	return 1
}

//go:wasmexport broken
func broken() int32 { panic("on purpose") }

func main() {}
