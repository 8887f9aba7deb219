//go:build wasip1

// Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes.
package main

import (
	"encoding/json"
	"io"
	"net/url"
	"os"
)

func main() {
	query, _ := url.ParseQuery(os.Getenv("QUERY_STRING"))
	author := query.Get("author")
	switch method := os.Getenv("REQUEST_METHOD"); {
	case author == "":
		answer("400 Bad Request", map[string]any{"error": "say whose notes: ?author=NAME"})
	case method == "POST":
		text, err := io.ReadAll(os.Stdin)
		if err != nil {
			failed(err)
			return
		}
		found, err := SQL("INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id", author, string(text))
		if err != nil {
			failed(err)
			return
		}
		answer("201 Created", map[string]any{"author": author, "id": found.Rows[0][0]})
	case method == "GET":
		found, err := SQL("SELECT text FROM notes WHERE author = ? ORDER BY id", author)
		if err != nil {
			failed(err)
			return
		}
		notes := []any{}
		for _, row := range found.Rows {
			notes = append(notes, row[0])
		}
		answer("200 OK", map[string]any{"author": author, "notes": notes})
	default:
		answer("405 Method Not Allowed\nAllow: GET, POST", map[string]any{"error": "only GET and POST"})
	}
}

// failed: what goes to stderr is the node's log, and a status of 500 and above undoes what the call wrote.
func failed(err error) {
	os.Stderr.WriteString(err.Error() + "\n")
	answer("500 Internal Server Error", map[string]any{"error": "the database refused it"})
}

func answer(status string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("Status: " + status + "\nContent-Type: application/json\n\n" + string(body) + "\n")
}
