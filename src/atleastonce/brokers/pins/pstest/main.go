// Command pstest serves the Pub/Sub fake of Google's Go client on the loopback address until it is ended.
package main

import (
	"flag"
	"fmt"

	"cloud.google.com/go/pubsub/v2/pstest"
)

func main() {
	address := flag.String("listen", "127.0.0.1:8085", "address to listen on")
	flag.Parse()
	server := pstest.NewServerWithAddress(*address)
	fmt.Println("listening on", server.Addr)
	select {}
}
