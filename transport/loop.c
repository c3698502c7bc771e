/* The loop of the TCP transport: waiting for the system, and a turn for every ready stream.
 *
 * `wait` runs without the caller's lock beside everything else, so it touches nothing but the
 * mailbox of ready events and a few atomics. What another call leaves to do while someone waits is
 * told by `busy`, and by a wake if the waiter may sleep already: the caller sets busy and then
 * looks for a waiter, the waiter says that it waits and then looks at busy, so one of both sees
 * the other. */
#include "transport/tcp.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

/* ---- waiting ---------------------------------------------------------------------------------- */

void cc__tcp_wake(cc_transport *transport) {
    uint64_t one = 1;
    int error = errno; /* may run in a signal handler */
    while (write(cc__tcp_of(transport)->wakeup, &one, sizeof one) < 0 && errno == EINTR) {
    }
    errno = error;
}

/* There is something to do that no descriptor will tell of. */
void cc__tcp_set_busy(tcp *tcp) {
    atomic_store(&tcp->busy, 1);
    if (atomic_load(&tcp->waiting)) cc__tcp_wake(&tcp->base);
}

static int timeout_of(int64_t timeout_ns) {
    if (timeout_ns <= 0) return 0;
    int64_t ms = timeout_ns / CC__MS + (timeout_ns % CC__MS != 0);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

int cc__tcp_wait(cc_transport *transport, int64_t timeout_ns) {
    tcp *tcp = cc__tcp_of(transport);
    uint64_t drained;
    if (atomic_load(&tcp->ready_count)) return 1; /* poll has not taken the last ones yet */
    atomic_store(&tcp->waiting, 1);
    int timeout = atomic_load(&tcp->busy) ? 0 : timeout_of(timeout_ns);
    int count = epoll_wait(tcp->epoll, tcp->ready, TCP_READY_MAX, timeout);
    atomic_store(&tcp->waiting, 0);
    for (int i = 0; i < count; i++)
        if (tcp->ready[i].data.u64 == TCP_WAKEUP) {
            while (read(tcp->wakeup, &drained, sizeof drained) < 0 && errno == EINTR) {
            }
            tcp->ready[i--] = tcp->ready[--count];
        }
    atomic_store(&tcp->fetched, 1);
    if (count > 0) atomic_store(&tcp->ready_count, count);
    return count > 0 || atomic_load(&tcp->busy);
}

/* ---- turns ------------------------------------------------------------------------------------ */

static void note(tcp *tcp, const struct epoll_event *event) {
    if (event->data.u64 == TCP_LISTENER) {
        tcp->acceptable = 1;
        return;
    }
    /* The event may be of a stream that is gone, whose index another one has now. */
    tcp_stream *stream = cc__tcp_find(tcp, (cc_stream)event->data.u64);
    if (!stream || stream->state == TCP_DEAD) return;
    if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        stream->hangup = 1;
        stream->peeked = 0;
    }
    if (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) stream->readable = 1;
    if (event->events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) stream->writable = 1;
    cc__tcp_activate(tcp, stream);
}

/* Takes the mailbox, or asks the system itself if the caller did not wait before. */
static void note_all(tcp *tcp) {
    struct epoll_event own[16];
    int count = atomic_load(&tcp->ready_count);
    int fetched = atomic_exchange(&tcp->fetched, 0);
    if (count) {
        for (int i = 0; i < count; i++) note(tcp, &tcp->ready[i]);
        atomic_store(&tcp->ready_count, 0);
    } else if (!fetched) {
        count = epoll_wait(tcp->epoll, own, 16, 0);
        for (int i = 0; i < count; i++)
            if (own[i].data.u64 != TCP_WAKEUP) /* it stays there for the next wait */
                note(tcp, &own[i]);
    }
}

static void run_turns(tcp *tcp) {
    tcp_node turn;
    if (tcp->accept_paused && cc__now(&tcp->clock) >= tcp->accept_paused) tcp->accept_paused = 0;
    if (tcp->acceptable && !tcp->accept_paused) cc__tcp_accept(tcp);
    if (tcp->next_deadline != CC__NEVER) {
        int64_t now = cc__now(&tcp->clock);
        if (now >= tcp->next_deadline) cc__tcp_expire(tcp, now);
    }
    if (tcp_node_alone(&tcp->active)) return;
    /* The streams of this round become a list of their own, with `turn` as its head: who still has
     * work goes to the end of `active` and has its next turn with the next call. */
    turn = tcp->active;
    turn.next->previous = turn.previous->next = &turn;
    tcp_node_init(&tcp->active);
    while (!tcp_node_alone(&turn)) {
        tcp_stream *stream = TCP_STREAM_OF(turn.next, active);
        tcp_node_remove(&stream->active);
        if (stream->state == TCP_OPEN)
            cc__tcp_move(tcp, stream);
        else if (stream->state == TCP_LINGERING)
            cc__tcp_linger(tcp, stream);
        else if (stream->mate)
            cc__tcp_relay(tcp, stream);
        else
            cc__tcp_greet(tcp, stream);
    }
}

static void fill_event(tcp_stream *stream, cc_transport_event *event) {
    static const cc_transport_event_kind kinds[] = {
        CC_TRANSPORT_CONNECTED, CC_TRANSPORT_ACCEPTED, CC_TRANSPORT_RECEIVED,
        CC_TRANSPORT_SENT,      CC_TRANSPORT_CLOSED,
    };
    int bit = __builtin_ctz(stream->events);
    stream->events &= (uint8_t)(stream->events - 1);
    event->kind = kinds[bit];
    event->stream = stream->number;
    event->status = event->kind == CC_TRANSPORT_CLOSED ? stream->why : CC_OK;
    if (event->kind == CC_TRANSPORT_ACCEPTED) event->hello = stream->hello;
}

int cc__tcp_poll(cc_transport *transport, cc_transport_event *events, int max) {
    tcp *tcp = cc__tcp_of(transport);
    int count = 0;
    note_all(tcp);
    run_turns(tcp);
    while (count < max && !tcp_node_alone(&tcp->raised)) {
        tcp_stream *stream = TCP_STREAM_OF(tcp->raised.next, raised);
        fill_event(stream, &events[count++]);
        if (!stream->events) tcp_node_remove(&stream->raised);
    }
    if (!tcp_node_alone(&tcp->active) || !tcp_node_alone(&tcp->raised) ||
        (tcp->acceptable && !tcp->accept_paused))
        cc__tcp_set_busy(tcp);
    else
        atomic_store(&tcp->busy, 0);
    return count;
}

int64_t cc__tcp_deadline(cc_transport *transport) {
    tcp *tcp = cc__tcp_of(transport);
    if (tcp->accept_paused && tcp->accept_paused < tcp->next_deadline) return tcp->accept_paused;
    return tcp->next_deadline;
}
