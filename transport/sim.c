/* Transport "sim": endpoints that live in a simulated world (cc_options.world) instead of on a
 * network. It exists for tests: time is virtual, chance has a seed, and every fault of a network
 * can be made at will, so a run that failed can be run again exactly. The world is sim_world.c, the
 * streams are sim_stream.c, those that are passed on sim_relay.c; here is the vtable.
 *
 * There is no queue of events: each end keeps a bit per kind, because at most one of each kind can
 * be due, and poll yields them in the order in which they can have happened. */
#include "transport/sim_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cc__sim_endpoint *endpoint_of(cc_transport *transport) {
    return (cc__sim_endpoint *)transport; /* it is the first field */
}

static cc__sim_end *find_end(cc_transport *transport, cc_stream number) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    uint32_t slot = (number & 0xffff) - 1;
    if (slot >= endpoint->n_slots || !endpoint->slots[slot] ||
        endpoint->slots[slot]->number != number)
        return NULL;
    return endpoint->slots[slot];
}

static void fail(char *message, const char *text) {
    if (message) snprintf(message, CC_MESSAGE_MAX, "%s", text);
}

/* ---- the endpoint --------------------------------------------------------------------------- */

static void choose_address(cc__sim_endpoint *endpoint, const char *wish) {
    cc_sim *sim = endpoint->sim;
    if (wish && strncmp(wish, "sim:", 4) == 0 && strlen(wish) < CC_ADDRESS_MAX &&
        !cc__sim_find(sim, wish)) {
        strcpy(endpoint->address, wish);
        return;
    }
    do snprintf(endpoint->address, CC_ADDRESS_MAX, "sim:%u", sim->opened++);
    while (cc__sim_find(sim, endpoint->address));
}

static cc_status sim_open(const cc_transport_options *options, cc_transport **out, char *message) {
    const cc_options *given = options->options;
    *out = NULL;
    if (!given->world) {
        fail(message, "transport sim: no world to live in; set cc_options.world to a cc_sim");
        return CC_INVALID;
    }
    cc__sim_endpoint *endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint) {
        fail(message, "transport sim: out of memory");
        return CC_NO_MEMORY;
    }
    endpoint->sim = given->world;
    endpoint->transport.ops = endpoint->sim->ops;
    endpoint->id = given->id;
    endpoint->streams = given->streams;
    endpoint->segment_bytes = given->segment_bytes;
    endpoint->io_max_bytes = given->io_max_bytes;
    endpoint->connect_ns = given->timeouts.connect_ms * CC__MS;
    endpoint->linger_ns = given->timeouts.linger_ms * CC__MS;
    endpoint->offset_ns = endpoint->sim->offset_ns;
    endpoint->fast_ppm = endpoint->sim->fast_ppm;
    endpoint->frames_max = UINT64_MAX;
    choose_address(endpoint, given->bind_address);
    cc__sim_endpoint **last = &endpoint->sim->endpoints;
    while (*last) last = &(*last)->next;
    *last = endpoint;
    *out = &endpoint->transport;
    return CC_OK;
}

static int64_t local_now(void *arg) {
    const cc__sim_endpoint *endpoint = arg;
    return cc__sim_local(endpoint, endpoint->sim->now_ns);
}

static cc__clock sim_clock(cc_transport *transport) {
    return (cc__clock){local_now, endpoint_of(transport)};
}

static void sim_address(cc_transport *transport, char *out) {
    strcpy(out, endpoint_of(transport)->address);
}

static void sim_set_token(cc_transport *transport, const uint8_t token[16]) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    memcpy(endpoint->token, token, sizeof endpoint->token);
    endpoint->has_token = 1;
}

static void sim_stats(cc_transport *transport, cc_stats *out) {
    const cc__sim_endpoint *endpoint = endpoint_of(transport);
    out->sent_bytes = endpoint->sent_bytes;
    out->received_bytes = endpoint->received_bytes;
    out->bad_connections = endpoint->bad_connections;
}

static void sim_network(cc_transport *transport, cc_stream stream, cc_network *out) {
    const cc_sim *sim = endpoint_of(transport)->sim;
    (void)stream;
    *out = (cc_network){(uint64_t)(sim->low_ns + sim->high_ns) / 2, sim->bytes_per_s};
}

static void sim_forked(cc_transport *transport) {
    (void)transport; /* there is no descriptor to close */
}

/* Time does not pass in here, so nothing is waited for: orderly streams linger in the world. */
static void sim_stop(cc_transport *transport, int abort) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    cc__sim_leave(endpoint, !abort);
    cc__sim_endpoint **link = &endpoint->sim->endpoints;
    while (*link != endpoint) link = &(*link)->next;
    *link = endpoint->next;
    free(endpoint->slots);
    cc__routes_free(&endpoint->routes);
    free(endpoint);
}

static int is_address(const char *text) {
    return text && strncmp(text, "sim:", 4) == 0 && strlen(text) < CC_ADDRESS_MAX;
}

static cc_status sim_route(cc_transport *transport, const cc_peer_id *peer, const char *address) {
    if (address && !is_address(address)) return CC_INVALID;
    return cc__routes_set(&endpoint_of(transport)->routes, peer, address);
}

/* ---- streams -------------------------------------------------------------------------------- */

static cc_status dial(cc_transport *transport, const char *address, cc__hello_role role,
                      const cc_hello *hello, cc_stream *out) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    *out = CC_STREAM_NONE;
    if (endpoint->killed) return CC_CLOSED;
    if (!is_address(address) || memcmp(&hello->from, &endpoint->id, sizeof endpoint->id) != 0)
        return CC_INVALID;
    return cc__sim_dial(endpoint, address, role, hello, out);
}

static cc_status sim_connect(cc_transport *transport, const char *address, const cc_hello *hello,
                             cc_stream *out) {
    return dial(transport, address, CC__HELLO_DIAL, hello, out);
}

static cc_status sim_connect_through(cc_transport *transport, const char *relay,
                                     const cc_hello *hello, cc_stream *out) {
    return dial(transport, relay, CC__HELLO_RELAY, hello, out);
}

static cc_status sim_send(cc_transport *transport, cc_stream stream, const struct iovec *iov,
                          int count) {
    cc__sim_end *end = find_end(transport, stream);
    if (!end || end->state == CC__SIM_DEAD) return CC_CLOSED;
    if (count < 0 || count > 2) return CC_INVALID;
    if (end->sending) return CC_BUSY;
    if (endpoint_of(transport)->sent_frames++ >= endpoint_of(transport)->frames_max) return CC_OK;
    for (int i = 0; i < 2; i++) {
        end->send[i] = i < count ? iov[i] : (struct iovec){NULL, 0};
        end->send_left += end->send[i].iov_len;
    }
    end->corrupt = cc__sim_out(end)->corrupts;
    cc__sim_out(end)->corrupts = 0;
    cc__sim_pump(end);
    if (end->state == CC__SIM_DEAD) return CC_CLOSED;
    end->sending = end->send_left > 0;
    return end->sending ? CC_PENDING : CC_OK;
}

static cc_status sim_recv(cc_transport *transport, cc_stream stream, void *place, size_t bytes) {
    cc__sim_end *end = find_end(transport, stream);
    if (!end || end->state == CC__SIM_DEAD) return CC_CLOSED;
    if (end->receiving) return CC_BUSY;
    end->place = place;
    end->recv_left = bytes;
    if (end->state == CC__SIM_OPEN) {
        cc__sim_consume(end);
        if (end->state == CC__SIM_OPEN && end->recv_left && cc__sim_in(end)->ended)
            cc__sim_die(end, cc__sim_in(end)->why, 0);
        if (end->state == CC__SIM_DEAD) return CC_CLOSED;
    }
    end->receiving = end->recv_left > 0;
    return end->receiving ? CC_PENDING : CC_OK;
}

static cc_status sim_release(cc_transport *transport, cc_stream stream, int what) {
    cc__sim_end *end = find_end(transport, stream);
    if (!end) return CC_CLOSED;
    if (what & CC_RELEASE_RECV) end->place = NULL;
    if (!(what & CC_RELEASE_SEND) || cc__sim_copy(end)) return CC_OK;
    cc__sim_die(end, CC_SYSTEM, 1);
    return CC_NO_MEMORY;
}

static void sim_close(cc_transport *transport, cc_stream stream, int orderly) {
    cc__sim_end *end = find_end(transport, stream);
    if (end) cc__sim_close_end(end, orderly);
}

/* ---- what happens --------------------------------------------------------------------------- */

static void receive_hello(cc__sim_endpoint *endpoint, cc__sim_end *end) {
    cc__hello_rules rules = {.id = endpoint->id,
                             .has_token = endpoint->has_token,
                             .streams = endpoint->streams,
                             .segment_bytes = endpoint->segment_bytes};
    memcpy(rules.token, endpoint->token, sizeof rules.token);
    cc_status verdict = cc__hello_judge(&rules, end->stream->role, &end->stream->hello);
    if (verdict) {
        endpoint->bad_connections++;
        cc__sim_reject(end, verdict);
    } else if (end->stream->role == CC__HELLO_RELAY) {
        cc__sim_relay_begin(endpoint, end);
    } else {
        end->state = CC__SIM_OPEN;
        end->events |= 1u << CC_TRANSPORT_ACCEPTED;
        cc__sim_answer(end);
    }
}

/* Why a dial failed. The refusal of an address is that of whoever was dialled there, a relay's too;
 * the refusal that comes as an answer is a relay's word. */
static cc_status dial_failure(const cc__sim_end *end, cc_status why) {
    if (why == CC_REFUSED && !end->stream->refused) return why;
    return cc__hello_failure(end->stream->role, why);
}

/* Does for one end what has come due. The end may be gone afterwards. */
static void tend(cc__sim_endpoint *endpoint, cc__sim_end *end) {
    cc__sim_pipe *in = cc__sim_in(end);
    if (end->mate) {
        cc__sim_relay(end);
        return;
    }
    if (end->state == CC__SIM_WAITING) {
        if (in->greeted) receive_hello(endpoint, end);
        return;
    }
    if (end->state == CC__SIM_DIALING) {
        if (in->greeted) {
            end->state = CC__SIM_OPEN;
            end->events |= 1u << CC_TRANSPORT_CONNECTED;
            cc__sim_pump(end);
        } else if (in->ended) {
            cc__sim_die(end, dial_failure(end, in->why), 0);
        } else if (endpoint->sim->now_ns >= end->deadline_ns) {
            cc__sim_die(end, CC_TIMED_OUT, 1);
        }
    }
    if (end->state != CC__SIM_OPEN) return;
    cc__sim_consume(end);
    if (end->receiving && end->recv_left == 0) {
        end->receiving = 0;
        end->events |= 1u << CC_TRANSPORT_RECEIVED;
    }
    if (in->ended && end->state == CC__SIM_OPEN) {
        if (!in->arrived.head || end->receiving)
            cc__sim_die(end, in->why, 0);
        else
            cc__sim_pump(end); /* to nowhere: a send must not wait for the reader of this end */
    }
}

static int yield(cc__sim_end *end, cc_transport_event *events, int max) {
    int count = 0;
    for (int kind = CC_TRANSPORT_CONNECTED; kind <= CC_TRANSPORT_CLOSED && count < max; kind++) {
        if (!(end->events & 1u << kind)) continue;
        end->events &= ~(1u << kind);
        cc_transport_event *event = &events[count++];
        memset(event, 0, sizeof *event);
        event->kind = (cc_transport_event_kind)kind;
        event->stream = end->number;
        if (kind == CC_TRANSPORT_CLOSED) event->status = end->why;
        if (kind == CC_TRANSPORT_ACCEPTED) event->hello = end->stream->hello;
    }
    return count;
}

static int sim_poll(cc_transport *transport, cc_transport_event *events, int max) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    int count = 0;
    uint32_t slots = endpoint->n_slots, start = endpoint->cursor;
    for (uint32_t i = 0; i < slots && count < max; i++) {
        uint32_t slot = (start + i) % slots;
        if (endpoint->slots[slot]) tend(endpoint, endpoint->slots[slot]);
        if (endpoint->slots[slot] && !endpoint->slots[slot]->mate)
            count += yield(endpoint->slots[slot], events + count, max - count);
        endpoint->cursor = slot; /* a full house goes on here next time */
    }
    return count;
}

static int64_t next_event(const cc__sim_endpoint *endpoint) {
    int64_t next = CC__NEVER;
    for (uint32_t slot = 0; slot < endpoint->n_slots; slot++) {
        if (!endpoint->slots[slot]) continue;
        int64_t at = cc__sim_end_next(endpoint->slots[slot]);
        next = at < next ? at : next;
    }
    return next;
}

static int64_t sim_deadline(cc_transport *transport) {
    const cc__sim_endpoint *endpoint = endpoint_of(transport);
    return cc__sim_local(endpoint, next_event(endpoint));
}

/* There is one thread, and it is the one that lets time pass: waiting here would be for ever. */
static int sim_wait(cc_transport *transport, int64_t timeout_ns) {
    cc__sim_endpoint *endpoint = endpoint_of(transport);
    int woken = endpoint->woken;
    (void)timeout_ns;
    endpoint->woken = 0;
    return woken || next_event(endpoint) <= endpoint->sim->now_ns;
}

static void sim_wake(cc_transport *transport) {
    endpoint_of(transport)->woken = 1;
}

const cc_transport_ops cc__transport_sim = {
    .name = "sim",
    .open = sim_open,
    .clock = sim_clock,
    .address = sim_address,
    .set_token = sim_set_token,
    .connect = sim_connect,
    .connect_through = sim_connect_through,
    .route = sim_route,
    .send = sim_send,
    .recv = sim_recv,
    .release = sim_release,
    .close = sim_close,
    .poll = sim_poll,
    .wait = sim_wait,
    .wake = sim_wake,
    .deadline = sim_deadline,
    .stats = sim_stats,
    .network = sim_network,
    .forked = sim_forked,
    .stop = sim_stop,
};
