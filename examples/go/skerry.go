//go:build wasip1

// What a Skerry function in Go needs besides the standard library: SQL, HTTP.
//
// A function is a WASI command that answers one request: the request is in CGI variables (PATH_INFO, QUERY_STRING, ...)
// and its body on stdin; the answer goes to stdout: headers, a blank line, the body.
// All SQL of one request is one transaction, committed when the function ends normally with a status below 500.

package main

import (
	"bytes"
	"encoding/json"
	"unsafe"
)

// The node's functions: ask with JSON and get the length of the answer, then have it copied, once.

//go:wasmimport skerry sql
func importSQL(request unsafe.Pointer, size uint32) uint32

//go:wasmimport skerry http
func importHTTP(request unsafe.Pointer, size uint32) uint32

//go:wasmimport skerry result
func importResult(answer unsafe.Pointer)

// Answer is what a statement gave. In its rows a TEXT is a string, a number a json.Number (exact to 64 bits), NULL is
// nil, and a BLOB a map with its base64 text as "$blob".
type Answer struct {
	Columns []string
	Rows    [][]any
	// Changes counts the rows that the statement wrote.
	Changes int64
	// LastID is the rowid of the last row that it inserted.
	LastID *int64 `json:"last_id"`
}

// Error says why a statement failed; the codes are in docs/errors.md.
type Error struct {
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// SQL runs one SQL statement with values for its question marks: strings, numbers, booleans, nil.
func SQL(statement string, parameters ...any) (*Answer, error) {
	if parameters == nil {
		parameters = []any{}
	}
	request, err := json.Marshal(map[string]any{"sql": statement, "params": parameters})
	if err != nil {
		return nil, err
	}
	var found struct {
		Answer
		Error *Error
	}
	if err := read(importSQL(unsafe.Pointer(&request[0]), uint32(len(request))), &found); err != nil {
		return nil, err
	}
	if found.Error != nil {
		return nil, found.Error
	}
	return &found.Answer, nil
}

// Request is one that the node is to send. The URL alone must be there; headers are pairs of name and value, and the
// body is a string or a map with its base64 text as "$blob".
type Request struct {
	Method  string      `json:"method,omitempty"`
	URL     string      `json:"url"`
	Headers [][2]string `json:"headers,omitempty"`
	Body    any         `json:"body,omitempty"`
}

// Response is the answer to a Request.
type Response struct {
	Status  int
	Headers [][2]string
	Body    any
}

// HTTP has the node send a request.
func HTTP(request Request) (*Response, error) {
	asked, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	var found struct {
		Response
		Error *Error
	}
	if err := read(importHTTP(unsafe.Pointer(&asked[0]), uint32(len(asked))), &found); err != nil {
		return nil, err
	}
	if found.Error != nil {
		return nil, found.Error
	}
	return &found.Response, nil
}

// read decodes the answer that waits.
func read(size uint32, to any) error {
	answer := make([]byte, size)
	importResult(unsafe.Pointer(&answer[0]))
	decoder := json.NewDecoder(bytes.NewReader(answer))
	decoder.UseNumber()
	return decoder.Decode(to)
}
