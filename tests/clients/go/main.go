// amqp091-go; it reconnects by hand, to the next node that takes it. Arguments and talk are those of ../stage.py.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	messages = 20
	prefetch = 4
	patience = 30 * time.Second
)

var first, second, queue = os.Args[1], os.Args[2], os.Args[3]

type delivery struct {
	body        string
	redelivered bool
}

func ok(step string) { fmt.Println("ok " + step) }

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func mustEqual(got, wanted interface{}) {
	if !reflect.DeepEqual(got, wanted) {
		must(fmt.Errorf("got %v, wanted %v", got, wanted))
	}
}

func kill() {
	fmt.Println("kill")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	must(err)
	mustEqual(strings.TrimSpace(line), "killed")
}

func connect() *amqp.Connection {
	for n := 0; ; n++ {
		connection, err := amqp.Dial("amqp://guest:guest@" + []string{first, second}[n%2] + "/")
		if err == nil {
			return connection
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func confirming(connection *amqp.Connection) (*amqp.Channel, error) {
	channel, err := connection.Channel()
	if err == nil {
		err = channel.Confirm(false)
	}
	return channel, err
}

// Publishes and waits for the confirm.
func publish(channel *amqp.Channel, key, body string) error {
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	message := amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)}
	confirm, err := channel.PublishWithDeferredConfirmWithContext(context.Background(), "", key, true, false, message)
	if err != nil {
		return err
	}
	answer := make(chan bool, 1)
	go func() { answer <- confirm.Wait() }()
	select {
	case ack := <-answer:
		if !ack {
			return errors.New("nacked")
		}
		return nil
	case <-closed:
		return errors.New("closed")
	}
}

func consume(connection *amqp.Connection, limit int) (*amqp.Channel, <-chan amqp.Delivery, error) {
	channel, err := connection.Channel()
	if err == nil {
		err = channel.Qos(limit, 0, false)
	}
	if err != nil {
		return nil, nil, err
	}
	arrivals, err := channel.Consume(queue, "", false, false, false, false, nil)
	return channel, arrivals, err
}

func take(arrivals <-chan amqp.Delivery) (amqp.Delivery, error) {
	select {
	case message, open := <-arrivals:
		if !open {
			return message, errors.New("closed")
		}
		return message, nil
	case <-time.After(patience):
		must(errors.New("nothing is delivered"))
	}
	panic("not reached")
}

func seen(message amqp.Delivery) delivery { return delivery{string(message.Body), message.Redelivered} }

func bodyOf(n int) string { return fmt.Sprintf("m%02d", n) }

func ordinary(connection *amqp.Connection) {
	out, err := confirming(connection)
	must(err)
	returned := out.NotifyReturn(make(chan amqp.Return, 1))
	for n := 0; n < messages; n++ {
		must(publish(out, queue, bodyOf(n)))
	}
	mustEqual(len(returned), 0)
	ok("confirm")
	must(publish(out, "nobody-"+queue, "lost"))
	mustEqual(len(returned), 1) // before its confirm
	mustEqual((<-returned).ReplyCode, uint16(amqp.NoRoute))
	ok("return")

	_, arrivals, err := consume(connection, prefetch)
	must(err)
	var got, wanted []delivery
	var held []amqp.Delivery
	next := func() {
		message, err := take(arrivals)
		must(err)
		got, held = append(got, seen(message)), append(held, message)
	}
	for n := 0; n < prefetch; n++ {
		next()
	}
	counted, err := out.QueueInspect(queue)
	must(err)
	mustEqual(counted.Messages, messages-prefetch)
	ok("prefetch")
	must(held[0].Nack(false, true))
	held = held[1:]
	for next(); len(held) > 0; held = held[1:] {
		must(held[0].Ack(false))
		if len(got) <= messages {
			next()
		}
	}
	for n := 0; n < messages; n++ {
		if n == prefetch {
			wanted = append(wanted, delivery{bodyOf(0), true})
		}
		wanted = append(wanted, delivery{bodyOf(n), false})
	}
	mustEqual(got, wanted)
	ok("requeue")

	must(publish(out, queue, "held"))
	next()
	mustEqual(got[len(got)-1], delivery{"held", false})
}

// One life of a connection after the kill; an error when it ended early.
func reconnected(left *[]string, after []string) error {
	connection := connect()
	defer connection.Close()
	channel, arrivals, err := consume(connection, 0)
	if err != nil {
		return err
	}
	out, err := confirming(connection)
	if err != nil {
		return err
	}
	for ; len(*left) > 0; *left = (*left)[1:] {
		if err := publish(out, queue, (*left)[0]); err != nil {
			return err
		}
	}
	missing := map[string]bool{"held": true}
	for _, body := range after {
		missing[body] = true
	}
	var fresh []string
	var last uint64
	// What the dead node held comes when the leader is sure that it is gone: the others need not wait for it.
	for len(missing) > 0 {
		message, err := take(arrivals)
		if err != nil {
			return err
		}
		body := string(message.Body)
		if body == "held" {
			mustEqual(message.Redelivered, true)
		} else if !message.Redelivered && missing[body] {
			fresh = append(fresh, body)
		}
		delete(missing, body)
		last = message.DeliveryTag
	}
	mustEqual(fresh, after)
	must(channel.Ack(last, true))
	_, err = channel.QueueInspect(queue) // the acknowledgement is heard
	return err
}

func main() {
	ordinary(connect())
	kill()
	var after []string
	for n := 0; n < 10; n++ {
		after = append(after, fmt.Sprintf("after-%d", n))
	}
	left := append([]string(nil), after...)
	for reconnected(&left, after) != nil {
	}
	ok("reconnect")
}
