//go:build wasip1

// The node calls this by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
)

func main() {
	switch {
	// No client can send these headers.
	case os.Getenv("HTTP_SKERRY_EVENT") == "schedule":
		due := os.Getenv("HTTP_SKERRY_SCHEDULED_AT")
		run("INSERT INTO notes (due) VALUES (?)", due)
		run("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')", due)
		fmt.Print("Content-Type: application/json\n\n{\"kept\":true}\n")
	case os.Getenv("REQUEST_METHOD") == "GET":
		ticks := []any{}
		for _, row := range run("SELECT due FROM notes ORDER BY due DESC LIMIT 10").Rows {
			ticks = append(ticks, row[0])
		}
		body, err := json.Marshal(ticks)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("Content-Type: application/json\n\n%s\n", body)
	default:
		fmt.Print("Status: 405 Method Not Allowed\nAllow: GET\nContent-Type: text/plain\n\nonly the schedule starts it\n")
	}
}

func run(statement string, parameters ...any) *Answer {
	found, err := SQL(statement, parameters...)
	if err != nil {
		// What goes to stderr is the node's log. The end undoes what the call wrote, and the tick has failed.
		log.Fatal(err)
	}
	return found
}
