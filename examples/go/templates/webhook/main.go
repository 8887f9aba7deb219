//go:build wasip1

// Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
// from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
)

func main() {
	if os.Getenv("REQUEST_METHOD") != "POST" {
		answer("405 Method Not Allowed\nAllow: POST", `{"error":"only POST"}`)
		return
	}
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	id := os.Getenv("HTTP_WEBHOOK_ID")
	if !signed(id + "." + os.Getenv("HTTP_WEBHOOK_TIMESTAMP") + "." + string(body)) {
		answer("401 Unauthorized", `{"error":"the signature isn't right"}`)
		return
	}
	const statement = "INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id"
	found, err := SQL(statement, id, string(body))
	if err != nil {
		// What goes to stderr is the node's log. The end becomes a 502, and the sender sends the event again.
		log.Fatal(err)
	}
	answer("200 OK", fmt.Sprintf(`{"stored":%t}`, len(found.Rows) > 0))
}

// signed tells whether one of the signatures in the header is the message's.
func signed(message string) bool {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("WEBHOOK_SECRET"), "whsec_"))
	// A secret has 24 to 64 bytes: anybody could guess a short one.
	if err != nil || len(key) < 24 {
		return false
	}
	right := hmac.New(sha256.New, key)
	right.Write([]byte(message))
	for _, signature := range strings.Fields(os.Getenv("HTTP_WEBHOOK_SIGNATURE")) {
		text, found := strings.CutPrefix(signature, "v1,")
		given, err := base64.StdEncoding.DecodeString(text)
		// hmac.Equal takes the same time wherever they differ, which would tell how to go on.
		if found && err == nil && hmac.Equal(given, right.Sum(nil)) {
			return true
		}
	}
	return false
}

func answer(status, json string) {
	fmt.Printf("Status: %s\nContent-Type: application/json\n\n%s\n", status, json)
}
