/* The streams of the TCP transport: their numbers, the lists they are in, and their end. */
#include "transport/tcp.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- numbers ---------------------------------------------------------------------------------- */

static int grow(tcp *tcp) {
    uint32_t room = tcp->streams_room ? tcp->streams_room * 2 : 64;
    tcp_stream **streams = calloc(room, sizeof *streams);
    uint32_t *next_free = calloc(room, sizeof *next_free);
    if (!streams || !next_free) {
        free(streams);
        free(next_free);
        return -1;
    }
    if (tcp->streams) {
        memcpy(streams, tcp->streams, tcp->streams_count * sizeof *streams);
        memcpy(next_free, tcp->next_free, tcp->streams_count * sizeof *next_free);
    }
    /* In this order: a fork in between must leave the child a table that it can walk. */
    tcp_stream **old = tcp->streams;
    tcp->streams = streams;
    free(old);
    free(tcp->next_free);
    tcp->next_free = next_free;
    tcp->streams_room = room;
    return 0;
}

/* Free numbers are used in turn, and new ones are made first while there are few: so a number rests
 * as long as possible before its index, with the next generation, is used again. */
static tcp_stream *take_slot(tcp *tcp) {
    uint32_t index = tcp->free_first;
    if (index && (tcp->streams_count >= 1024)) {
        tcp->free_first = tcp->next_free[index];
        if (!tcp->free_first) tcp->free_last = 0;
        return tcp->streams[index];
    }
    if (tcp->streams_count == 0) tcp->streams_count = 1;
    index = tcp->streams_count;
    if (index > TCP_STREAMS_MAX || (index >= tcp->streams_room && grow(tcp))) return NULL;
    tcp_stream *stream = calloc(1, sizeof *stream);
    if (!stream) return NULL;
    stream->number = index;
    tcp->streams[index] = stream;
    tcp->streams_count = index + 1;
    return stream;
}

tcp_stream *cc__tcp_add(tcp *tcp, int fd, tcp_state state) {
    tcp_stream *stream = take_slot(tcp);
    if (!stream) {
        close(fd);
        return NULL;
    }
    cc_stream number = stream->number + (1u << 16);
    *stream = (tcp_stream){.number = number, .fd = fd, .state = state};
    tcp_node_init(&stream->active);
    tcp_node_init(&stream->raised);
    tcp_node_init(&stream->timed);
    return stream;
}

tcp_stream *cc__tcp_find(tcp *tcp, cc_stream number) {
    uint32_t index = number & 0xffff;
    if (index == 0 || index >= tcp->streams_count) return NULL;
    tcp_stream *stream = tcp->streams[index];
    return stream->number == number && stream->state != TCP_FREE ? stream : NULL;
}

/* A process that was forked in between may still hold the descriptor, so it must be taken out of
 * the epoll set by hand. */
static void close_descriptor(tcp *tcp, tcp_stream *stream) {
    if (stream->fd >= 0) {
        int fd = stream->fd;
        stream->fd = -1;
        epoll_ctl(tcp->epoll, EPOLL_CTL_DEL, fd, NULL);
        close(fd);
    }
    cc__tcp_untime(tcp, stream);
    tcp_node_remove(&stream->active);
    free(stream->copy);
    free(stream->ahead);
    stream->copy = stream->ahead = NULL;
    stream->sending = stream->receiving = 0;
    stream->out_bytes = stream->want = 0;
    stream->ahead_begin = stream->ahead_end = stream->ahead_max = 0;
    stream->hello_out_bytes = stream->hello_out_at = 0;
}

void cc__tcp_drop(tcp *tcp, tcp_stream *stream) {
    uint32_t index = stream->number & 0xffff;
    if (stream->mate) { /* neither end of a relay outlives the other */
        tcp_stream *mate = stream->mate;
        cc__tcp_relay_part(tcp, stream);
        cc__tcp_drop(tcp, mate);
    }
    close_descriptor(tcp, stream);
    tcp_node_remove(&stream->raised);
    stream->events = 0;
    stream->state = TCP_FREE;
    tcp->next_free[index] = 0;
    if (tcp->free_last)
        tcp->next_free[tcp->free_last] = index;
    else
        tcp->free_first = index;
    tcp->free_last = index;
}

void cc__tcp_die(tcp *tcp, tcp_stream *stream, cc_status why) {
    close_descriptor(tcp, stream);
    stream->state = TCP_DEAD;
    stream->why = why;
    cc__tcp_raise(tcp, stream, TCP_CLOSED);
}

/* ---- lists ------------------------------------------------------------------------------------ */

void cc__tcp_raise(tcp *tcp, tcp_stream *stream, unsigned event) {
    if (!stream->events) tcp_node_append(&tcp->raised, &stream->raised);
    stream->events |= (uint8_t)event;
}

void cc__tcp_time(tcp *tcp, tcp_stream *stream, int64_t deadline) {
    stream->deadline = deadline;
    if (tcp_node_alone(&stream->timed))
        tcp_node_append(stream->half_open ? &tcp->half_open : &tcp->timed, &stream->timed);
    if (deadline < tcp->next_deadline) tcp->next_deadline = deadline;
}

void cc__tcp_untime(tcp *tcp, tcp_stream *stream) {
    tcp_node_remove(&stream->timed);
    if (stream->half_open) tcp->half_open_count--;
    stream->half_open = 0;
    if (tcp_node_alone(&tcp->timed) && tcp_node_alone(&tcp->half_open))
        tcp->next_deadline = CC__NEVER;
}

static int has_work(const tcp_stream *stream) {
    switch (stream->state) {
    case TCP_DIALLING:
    case TCP_REACHING: return stream->writable || stream->hangup;
    case TCP_ASKING:
    case TCP_GREETING: return stream->readable || tcp_can_write(stream);
    case TCP_OPEN:
        return tcp_can_write(stream) || tcp_can_read(stream) || tcp_can_peek(stream) ||
               tcp_is_over(stream);
    case TCP_LINGERING:
        return stream->readable || tcp_can_write(stream) || stream->broken ||
               (!stream->shut && !tcp_has_rest(stream));
    case TCP_RELAYING:
        return tcp_can_pull(stream) || tcp_can_push(stream) || tcp_may_have_failed(stream);
    default: return 0;
    }
}

void cc__tcp_activate(tcp *tcp, tcp_stream *stream) {
    int work = has_work(stream), listed = !tcp_node_alone(&stream->active);
    if (work && !listed)
        tcp_node_append(&tcp->active, &stream->active);
    else if (!work && listed)
        tcp_node_remove(&stream->active);
}

void cc__tcp_open_up(tcp *tcp, tcp_stream *stream, unsigned event) {
    size_t ahead = stream->hello.stream ? tcp->header_bytes : tcp->readahead_bytes;
    cc__tcp_untime(tcp, stream);
    stream->state = TCP_OPEN;
    stream->ahead = ahead ? malloc(ahead) : NULL;
    stream->ahead_max = stream->ahead ? ahead : 0; /* it goes without, only slower */
    if (stream->hello.stream) cc__socket_tune_bulk(stream->fd);
    cc__tcp_raise(tcp, stream, event);
}
