// What of Go's standard library a function can rely on: a line of name and value for each.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

func main() {
	switch os.Getenv("PATH_INFO") {
	case "/exit":
		os.Exit(3)
	case "/panic":
		panic("on purpose")
	}
	began := time.Now()
	time.Sleep(20 * time.Millisecond)
	slept := time.Since(began)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	<-ctx.Done()
	order := make([]byte, 8)
	_, err := rand.Read(order)
	numbers := make(chan int)
	var group sync.WaitGroup
	for n := range 100 {
		group.Add(1)
		go func() {
			defer group.Done()
			runtime.Gosched()
			numbers <- n
		}()
	}
	go func() { group.Wait(); close(numbers) }()
	sum := 0
	for n := range numbers {
		sum += n
	}
	body, bodyErr := io.ReadAll(os.Stdin)
	total := 0
	for _, b := range body {
		total += int(b)
	}
	large := make([]uint64, 1_000_000)
	memory := uint64(0)
	for i := range large {
		large[i] = uint64(i)
		memory += large[i]
	}
	runtime.GC()
	fmt.Println("Content-Type: text/plain\n")
	fmt.Println("clock", began.Year() >= 2025 && time.Now().After(began))
	fmt.Println("sleep", slept >= 20*time.Millisecond)
	fmt.Println("timer", ctx.Err())
	fmt.Println("random", order, err)
	fmt.Println("variable", os.Getenv("GREETING"))
	fmt.Println("variables", len(os.Environ()) > 8)
	fmt.Println("arguments", strings.Join(os.Args, " "))
	fmt.Println("goroutines", sum)
	fmt.Println("body", total, bodyErr)
	fmt.Println("memory", memory)
	_, err = os.ReadFile("/etc/passwd")
	fmt.Println("read", err != nil)
	fmt.Println("write", os.WriteFile("made", []byte("x"), 0o600) != nil)
	_, err = os.ReadDir("/")
	fmt.Println("list", err != nil)
	_, err = HTTP(Request{URL: "https://a.example/"})
	fmt.Println("http", err != nil && strings.Contains(err.Error(), "not_granted"))
	fmt.Fprintln(os.Stderr, "a line in the log")
}
