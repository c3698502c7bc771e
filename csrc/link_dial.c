/* How the streams of a link come and go: dialling, accepting, breaking, probing.
 *
 * Of two peers the later one dials all streams of the link, under one rising nonce. A dial under a
 * greater nonce replaces what was there: the peer lost its side. When a link breaks, a probe asks the
 * peer's address whether anyone listens: a refusal proves that the process is gone. */
#include "csrc/link_internal.h"

#include <stdlib.h>
#include <string.h>

#define OPS(links) ((links)->transport->ops)
#define DIAL_AGAIN_NS (5 * CC__MS)

/* Rises with every dial, so that a listener can tell a stale one from the one that replaces it. */
static uint64_t next_nonce(cc__links *links) {
    uint64_t now = (uint64_t)cc__now(&links->clock);
    links->nonce = now > links->nonce ? now : links->nonce + 1;
    return links->nonce;
}

static cc__channel **bucket(cc__links *links, cc_stream stream) {
    return &links->by_stream[(stream ^ (stream >> 8) ^ (stream >> 16)) & 255];
}

cc__channel *cc__links_channel_of(cc__links *links, cc_stream stream) {
    cc__channel *channel = *bucket(links, stream);
    while (channel && channel->stream != stream) channel = channel->hash_next;
    return channel;
}

void cc__links_adopt(cc__links *links, cc__link *link, uint32_t index, cc_stream stream) {
    cc__channel *channel = &link->channels[index];
    channel->stream = stream;
    channel->hash_next = *bucket(links, stream);
    *bucket(links, stream) = channel;
}

static void close_channel(cc__links *links, cc__channel *channel, bool orderly) {
    if (channel->stream == CC_STREAM_NONE) return;
    OPS(links)->close(links->transport, channel->stream, orderly);
    cc__channel **at = bucket(links, channel->stream);
    while (*at != channel) at = &(*at)->hash_next;
    *at = channel->hash_next;
    if (links->current == channel) links->current = NULL;
    channel->stream = CC_STREAM_NONE;
    channel->open = channel->sending = false;
    channel->phase = CC__PHASE_IDLE;
    channel->place = channel->in_owner = channel->out_owner = NULL;
}

void cc__links_tell(cc__links *links, cc__link *link) {
    if (link->in_pending) return;
    link->in_pending = true;
    link->pending_next = NULL;
    if (links->pending_last)
        links->pending_last->pending_next = link;
    else
        links->pending_first = link;
    links->pending_last = link;
}

static void close_channels(cc__links *links, cc__link *link, bool orderly) {
    for (uint32_t i = 0; i <= links->streams; i++)
        close_channel(links, &link->channels[i], orderly);
    link->open_streams = 0;
    link->queue_start = link->queue_end = 0;
    link->told_connected = false;
}

static void probe(cc__links *links, cc__link *link) {
    if (link->probe != CC_STREAM_NONE || link->address[0] == 0) return;
    cc__links_trace(links, (cc_trace_event){.kind = CC_TRACE_LINK_PROBED}, &link->id);
    cc_hello hello = {.from = links->self,
                      .to = link->id,
                      .stream = CC_HELLO_PROBE,
                      .streams = (uint16_t)links->streams,
                      .segment_bytes = links->segment_bytes,
                      .link = next_nonce(links)};
    memcpy(hello.token, links->token, 16);
    cc_status status = OPS(links)->connect(links->transport, link->address, &hello, &link->probe);
    if (status != CC_OK) link->probe = CC_STREAM_NONE;
}

void cc__links_break(cc__links *links, cc__link *link, cc_evidence_kind evidence,
                     cc_status status) {
    if (link->state != CC__LINK_BROKEN) link->broken_ns = cc__now(&links->clock);
    link->fading_ns = CC__NEVER;
    bool ask = evidence == CC_EVIDENCE_CLOSED && link->wanted;
    close_channels(links, link, false);
    link->state = CC__LINK_BROKEN;
    link->n_news = 0;
    if (evidence == 0) return;
    link->told_lost = true;
    link->lost_evidence = evidence;
    link->lost_status = status;
    cc__links_tell(links, link);
    if (ask) probe(links, link);
}

static void dial(cc__links *links, cc__link *link) {
    close_channels(links, link, false);
    link->state = CC__LINK_DIALING;
    link->nonce = next_nonce(links);
    cc__links_trace(links, (cc_trace_event){.kind = CC_TRACE_LINK_DIALLED}, &link->id);
    for (uint32_t i = 0; i <= links->streams; i++) {
        cc_hello hello = {.from = links->self,
                          .to = link->id,
                          .stream = (uint16_t)i,
                          .streams = (uint16_t)links->streams,
                          .segment_bytes = links->segment_bytes,
                          .link = link->nonce};
        memcpy(hello.token, links->token, 16);
        cc_stream stream = CC_STREAM_NONE;
        cc_status status = OPS(links)->connect(links->transport, link->address, &hello, &stream);
        if (status != CC_OK) {
            cc__links_break(links, link, CC_EVIDENCE_CLOSED, status);
            return;
        }
        cc__links_adopt(links, link, i, stream);
    }
}

static void look_again(cc__links *links, cc__link *link, int64_t after_ns) {
    link->probe_ns = cc__now(&links->clock) + after_ns;
    if (link->probe_ns < links->next_tick_ns) links->next_tick_ns = link->probe_ns;
}

/* A dying process closes its connections before its listener: a quick probe is neither answered nor
 * refused, but reset. It is asked again until that tells, or silence has. */
static void ask_later(cc__links *links, cc__link *link) {
    int64_t now = cc__now(&links->clock);
    if (now - link->broken_ns > links->timeouts.dead_ms * CC__MS) return;
    look_again(links, link, DIAL_AGAIN_NS);
}

void cc__links_probe_again(cc__links *links, cc__link *link, int64_t now) {
    if (now < link->probe_ns) return;
    link->probe_ns = CC__NEVER;
    if (!link->wanted) return;
    if (link->state == CC__LINK_BROKEN) probe(links, link);
    if (link->state == CC__LINK_IDLE && link->dials) dial(links, link);
}

static cc__link *new_link(cc__links *links, const cc_peer_id *id) {
    if (links->count >= CC_LINKS_MAX) return NULL;
    cc__link *link = calloc(1, sizeof *link);
    if (link == NULL) return NULL;
    link->id = *id;
    link->probe_ns = link->fading_ns = CC__NEVER;
    for (uint32_t i = 0; i <= CC_STREAMS_MAX; i++) {
        link->channels[i].link = link;
        link->channels[i].index = i;
    }
    link->next = links->first;
    links->first = link;
    links->count++;
    return link;
}

cc__link *cc__links_want(cc__links *links, const cc_member *member, uint32_t self_serial) {
    cc__link *link = cc__links_find(links, &member->id);
    if (link == NULL) link = new_link(links, &member->id);
    if (link == NULL) return NULL;
    memcpy(link->address, member->address, sizeof link->address);
    link->dials = self_serial > member->serial;
    link->wanted = true;
    link->accused = false;
    link->since_ns = cc__now(&links->clock);
    cc__watch_heard(&link->watch, &links->detector, link->since_ns);
    bool connected = link->state == CC__LINK_UP || link->state == CC__LINK_DIALING;
    if (link->dials && !connected) dial(links, link);
    if (!link->dials && link->state == CC__LINK_BROKEN) probe(links, link);
    return link;
}

void cc__links_drop(cc__links *links, cc__link *link) {
    cc__links_break(links, link, 0, CC_CLOSED);
    if (link->probe != CC_STREAM_NONE) OPS(links)->close(links->transport, link->probe, 0);
    for (cc__link **at = &links->pending_first, *last = NULL; *at;) {
        if (*at == link) {
            *at = link->pending_next;
            if (links->pending_last == link) links->pending_last = last;
            break;
        }
        last = *at;
        at = &(*at)->pending_next;
    }
    for (cc__channel **at = &links->resume_first, *last = NULL; *at;) {
        if ((*at)->link == link) {
            if (links->resume_last == *at) links->resume_last = last;
            *at = (*at)->resume_next;
            links->n_resuming--;
            continue;
        }
        last = *at;
        at = &(*at)->resume_next;
    }
    cc__link **at = &links->first;
    while (*at != link) at = &(*at)->next;
    *at = link->next;
    links->count--;
    for (uint32_t i = 0; i <= CC_STREAMS_MAX; i++) free(link->channels[i].scratch);
    free(link->queue);
    free(link);
}

static void channel_is_open(cc__links *links, cc__channel *channel) {
    cc__link *link = channel->link;
    size_t room = channel->index == 0 ? CC_EAGER_BYTES : links->segment_bytes;
    if (channel->scratch == NULL) channel->scratch = malloc(room);
    if (channel->scratch == NULL) {
        cc__links_break(links, link, CC_EVIDENCE_CLOSED, CC_NO_MEMORY);
        return;
    }
    channel->open = true;
    link->open_streams++;
    links->current = channel;
    if (link->open_streams <= links->streams) return;
    link->state = CC__LINK_UP;
    link->told_connected = true;
    link->sent_ns = 0;
    cc__watch_heard(&link->watch, &links->detector, cc__now(&links->clock));
    cc__links_tell(links, link);
    if (link->dials) cc__links_gauge(links, link);
}

void cc__links_on_connected(cc__links *links, cc_stream stream) {
    for (cc__link *link = links->first; link; link = link->next) {
        if (link->probe != stream) continue;
        OPS(links)->close(links->transport, stream,
                          0); /* it lives: CLOSED is all there is to say */
        link->probe = CC_STREAM_NONE;
        return;
    }
    cc__channel *channel = cc__links_channel_of(links, stream);
    if (channel) channel_is_open(links, channel);
}

void cc__links_on_accepted(cc__links *links, const cc_transport_event *event) {
    const cc_hello *hello = &event->hello;
    cc__link *link = NULL;
    if (hello->stream <= links->streams) {
        link = cc__links_find(links, &hello->from);
        if (link == NULL) link = new_link(links, &hello->from);
    }
    if (link == NULL) { /* a probe, or more links than we can hold */
        OPS(links)->close(links->transport, event->stream, hello->stream == CC_HELLO_PROBE);
        return;
    }
    bool stale = hello->link < link->nonce ||
                 (hello->link == link->nonce && link->state != CC__LINK_DIALING);
    if (stale) {
        OPS(links)->close(links->transport, event->stream, 0);
        return;
    }
    if (hello->link > link->nonce) {
        bool was_up = link->state == CC__LINK_UP;
        cc__links_break(links, link, was_up ? CC_EVIDENCE_CLOSED : 0, CC_CLOSED);
        link->nonce = hello->link;
        link->state = CC__LINK_DIALING;
    }
    cc__channel *channel = &link->channels[hello->stream];
    if (channel->stream != CC_STREAM_NONE) { /* the same stream twice under one nonce */
        OPS(links)->close(links->transport, event->stream, 0);
        return;
    }
    cc__links_adopt(links, link, hello->stream, event->stream);
    channel_is_open(links, channel);
}

/* Whether a dial's result proves that the peer's process is gone. */
static bool proves_death(cc_status status) {
    return status == CC_REFUSED || status == CC_EVICTED;
}

/* A peer that closes ends all streams at once, and a bulk stream's end may arrive before its last
 * votes and its BYE on stream 0. So that one decides, for as long as a beat takes. */
static void fade(cc__links *links, cc__channel *channel) {
    cc__link *link = channel->link;
    close_channel(links, channel, false);
    if (link->fading_ns != CC__NEVER) return;
    link->fading_ns = cc__now(&links->clock) + links->timeouts.beat_ms * CC__MS;
    if (link->fading_ns < links->next_tick_ns) links->next_tick_ns = link->fading_ns;
}

void cc__links_on_closed(cc__links *links, cc_stream stream, cc_status status) {
    for (cc__link *link = links->first; link; link = link->next) {
        if (link->probe != stream) continue;
        OPS(links)->close(links->transport, stream, 0);
        link->probe = CC_STREAM_NONE;
        if (link->state != CC__LINK_BROKEN || !link->wanted) return;
        if (!proves_death(status)) {
            ask_later(links, link);
            return;
        }
        link->told_evidence = true;
        link->more_evidence = CC_EVIDENCE_REFUSED;
        cc__links_tell(links, link);
        return;
    }
    cc__channel *channel = cc__links_channel_of(links, stream);
    if (channel == NULL) {
        OPS(links)->close(links->transport, stream, 0);
        return;
    }
    cc__link *link = channel->link;
    if (channel->index > 0 && link->state == CC__LINK_UP && status == CC_CLOSED) {
        fade(links, channel);
        return;
    }
    if (!channel->open && status == CC_BUSY) { /* not yet: it has not heard from the coordinator */
        close_channels(links, link, false);
        link->state = CC__LINK_IDLE;
        look_again(links, link, DIAL_AGAIN_NS);
        return;
    }
    cc_evidence_kind evidence = CC_EVIDENCE_CLOSED;
    if (!channel->open && proves_death(status)) evidence = CC_EVIDENCE_REFUSED;
    cc__links_break(links, link, evidence, status);
}

void cc__links_stop(cc__links *links, bool abort) {
    for (cc__link *link = links->first; link; link = link->next)
        close_channels(links, link, !abort);
    while (links->first) cc__links_drop(links, links->first);
}
