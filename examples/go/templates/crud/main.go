//go:build wasip1

// Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
// All SQL of one call is one transaction.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"
	"strings"
	"unicode/utf8"
)

func main() {
	id := strings.TrimPrefix(os.Getenv("PATH_INFO"), "/")
	method := os.Getenv("REQUEST_METHOD")
	var note struct{ Title, Text string }
	if method == "POST" || method == "PUT" {
		body, err := io.ReadAll(os.Stdin)
		if err != nil {
			log.Fatal(err)
		}
		length := 0
		if json.Unmarshal(body, &note) == nil {
			length = utf8.RuneCountInString(note.Title)
		}
		if length < 1 || length > 100 {
			fail("400 Bad Request", "send JSON: a title of 1 to 100 characters, and a text if there is one")
			return
		}
	}
	switch {
	case id == "" && method == "GET":
		answer("200 OK", run("SELECT id, title, text FROM notes ORDER BY id"))
	case id == "" && method == "POST":
		const statement = "INSERT INTO notes (title, text) VALUES (?, ?) RETURNING id, title, text"
		one("201 Created", run(statement, note.Title, note.Text))
	case id == "":
		fail("405 Method Not Allowed\nAllow: GET, POST", "not by this method")
	case method == "GET":
		one("200 OK", run("SELECT id, title, text FROM notes WHERE id = ?", id))
	case method == "PUT":
		const statement = "UPDATE notes SET title = ?, text = ? WHERE id = ? RETURNING id, title, text"
		one("200 OK", run(statement, note.Title, note.Text, id))
	case method == "DELETE":
		one("200 OK", run("DELETE FROM notes WHERE id = ? RETURNING id, title, text", id))
	default:
		fail("405 Method Not Allowed\nAllow: GET, PUT, DELETE", "not by this method")
	}
}

// run returns the notes that a statement gives.
func run(statement string, parameters ...any) []map[string]any {
	found, err := SQL(statement, parameters...)
	if err != nil {
		// What goes to stderr is the node's log. The end undoes what the call wrote, and the answer is a 502.
		log.Fatal(err)
	}
	notes := []map[string]any{}
	for _, row := range found.Rows {
		notes = append(notes, map[string]any{"id": row[0], "title": row[1], "text": row[2]})
	}
	return notes
}

func one(status string, notes []map[string]any) {
	if len(notes) == 0 {
		fail("404 Not Found", "there is no such note")
		return
	}
	answer(status, notes[0])
}

func fail(status, why string) { answer(status, map[string]string{"error": why}) }

func answer(status string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.WriteString("Status: " + status + "\nContent-Type: application/json\n\n" + string(body) + "\n")
}
