// Command pstest serves the Pub/Sub fake of Google's Go client on the loopback address until it is ended.
//
// Four things of the fake differ from the documented service and would hide or invent faults of a client; they are put right
// here: deliveries are counted for all subscriptions of a topic together (DeliveryAttempt belongs to one), a Pull that finds
// nothing looks again after half a second and no sooner (the service answers when a message arrives), requests above 4 MiB are
// refused (the service takes 10 MB), and a subscription's retention ends at 7 days (the service: 31).
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	maxRequest       = 10 * 1000 * 1000
	fakeMaxRetention = 7 * 24 * time.Hour
	maxRetention     = 31 * 24 * time.Hour
	pullWait         = 10 * time.Second
	pullAgain        = 10 * time.Millisecond
)

type server struct {
	*pstest.GServer
	mu       sync.Mutex
	attempts map[string]map[string]int32 // by subscription and message id
}

// Pull counts deliveries for each subscription, and answers with copies: the fake's own change while they are being sent.
func (s *server) Pull(ctx context.Context, request *pubsubpb.PullRequest) (*pubsubpb.PullResponse, error) {
	wait := !request.ReturnImmediately
	request.ReturnImmediately = true
	response, err := s.GServer.Pull(ctx, request)
	for end := time.Now().Add(pullWait); wait && err == nil && len(response.ReceivedMessages) == 0 && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-time.After(pullAgain):
			response, err = s.GServer.Pull(ctx, request)
		}
	}
	if err != nil || len(response.ReceivedMessages) == 0 {
		return response, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.attempts[request.Subscription]
	if counts == nil {
		counts = map[string]int32{}
		s.attempts[request.Subscription] = counts
	}
	answer := &pubsubpb.PullResponse{ReceivedMessages: make([]*pubsubpb.ReceivedMessage, 0, len(response.ReceivedMessages))}
	for _, received := range response.ReceivedMessages {
		id := received.Message.MessageId
		counts[id]++
		own := &pubsubpb.ReceivedMessage{AckId: received.AckId, Message: received.Message}
		if received.DeliveryAttempt > 0 {
			own.DeliveryAttempt = counts[id]
		}
		answer.ReceivedMessages = append(answer.ReceivedMessages, own)
	}
	return answer, nil
}

func (s *server) CreateSubscription(ctx context.Context, request *pubsubpb.Subscription) (*pubsubpb.Subscription, error) {
	wanted := request.MessageRetentionDuration
	if wanted == nil || wanted.AsDuration() <= fakeMaxRetention || wanted.AsDuration() > maxRetention {
		return s.GServer.CreateSubscription(ctx, request)
	}
	made := proto.Clone(request).(*pubsubpb.Subscription)
	made.MessageRetentionDuration = durationpb.New(fakeMaxRetention)
	answer, err := s.GServer.CreateSubscription(ctx, made)
	if err == nil {
		made.MessageRetentionDuration = wanted // the fake keeps this very object
	}
	return answer, err
}

func (s *server) DeleteSubscription(ctx context.Context, request *pubsubpb.DeleteSubscriptionRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	delete(s.attempts, request.Subscription)
	s.mu.Unlock()
	return s.GServer.DeleteSubscription(ctx, request)
}

func main() {
	address := flag.String("listen", "127.0.0.1:8085", "address to listen on")
	flag.Parse()
	fake := pstest.NewServerWithAddress("127.0.0.1:0")
	served := &server{GServer: &fake.GServer, attempts: map[string]map[string]int32{}}
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	own := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest))
	pubsubpb.RegisterPublisherServer(own, served)
	pubsubpb.RegisterSubscriberServer(own, served)
	pubsubpb.RegisterSchemaServiceServer(own, served)
	fmt.Println("listening on", listener.Addr())
	log.Fatal(own.Serve(listener))
}
