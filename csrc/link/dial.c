/* How the streams of a link come and go: dialling, accepting, breaking, mending, probing.
 *
 * Of two peers the later one dials all streams of the link, under one rising nonce. A dial under a
 * greater nonce replaces what was there: the peer lost its side. Once all streams are open both say
 * which session they know; if it is the same, the link is mended and nobody need know that it broke.
 * Meanwhile the listening side probes the peer's address: a refusal proves that the process is
 * gone. */
#include "csrc/link/internal.h"

#include <stdlib.h>
#include <string.h>

#define OPS(links) ((links)->transport->ops)
#define DIAL_AGAIN_PART 40 /* of a beat, until a dial is made again at first */

/* Rises with every dial, so that a listener can tell a stale one from the one that replaces it. */
uint64_t cc__links_nonce(cc__links *links) {
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
    channel->counted = 0;
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
    link->greeted = link->holding = false;
    link->unheard_ns = CC__NEVER;
}

cc_hello cc__links_hello(const cc__links *links, const cc__link *link, uint32_t stream,
                         uint64_t nonce) {
    cc_hello hello = {.from = links->self,
                      .to = link->id,
                      .stream = (uint16_t)stream,
                      .streams = (uint16_t)links->streams,
                      .segment_bytes = links->segment_bytes,
                      .link = nonce};
    memcpy(hello.token, links->token, sizeof hello.token);
    return hello;
}

/* The session is over, and all that was said in it. */
static void end_session(cc__link *link) {
    cc__session_start(&link->session, 0);
    link->n_news = 0;
    link->told_connected = link->told_mended = false;
}

static int64_t dial_again_ns(const cc__links *links) {
    return links->timeouts.beat_ms * CC__MS / DIAL_AGAIN_PART;
}

static void look_again(cc__links *links, cc__link *link, int64_t after_ns) {
    link->probe_ns = cc__now(&links->clock) + after_ns;
    if (link->probe_ns < links->next_tick_ns) links->next_tick_ns = link->probe_ns;
}

/* The longer it has been broken, the less often. */
void cc__links_look_later(cc__links *links, cc__link *link) {
    int64_t after = (cc__now(&links->clock) - link->broken_ns) / 8;
    int64_t most = links->timeouts.beat_ms * CC__MS;
    if (after > most) after = most;
    int64_t least = dial_again_ns(links);
    look_again(links, link, after < least ? least : after);
}

static bool may_mend(const cc__link *link, cc_evidence_kind evidence, cc_status status) {
    return evidence == CC_EVIDENCE_CLOSED && link->session.id != 0 && link->wanted &&
           status != CC_BUSY && status != CC_NO_MEMORY;
}

/* A link that was up only for a moment is broken as long as it was before, or who resets every
 * connection would be dialled without a pause. */
static bool note_break(const cc__links *links, cc__link *link) {
    int64_t now = cc__now(&links->clock);
    if (link->state == CC__LINK_BROKEN || cc__link_mends(link)) return false;
    if (link->state == CC__LINK_UP && now - link->up_ns < links->timeouts.beat_ms * CC__MS)
        return false;
    link->broken_ns = now;
    return true;
}

void cc__links_break(cc__links *links, cc__link *link, cc_evidence_kind evidence,
                     cc_status status) {
    bool was_up = link->state == CC__LINK_UP, is_new = note_break(links, link);
    link->fading_ns = CC__NEVER;
    close_channels(links, link, false);
    if (may_mend(link, evidence, status)) {
        link->state = CC__LINK_IDLE;
        if (was_up) cc__link_trace(links, link, CC_TRACE_LINK_BROKEN, status, evidence);
        if (is_new)
            look_again(links, link, 0);
        else
            cc__links_look_later(links, link);
        return;
    }
    bool ask = evidence == CC_EVIDENCE_CLOSED && link->wanted;
    end_session(link);
    link->state = CC__LINK_BROKEN;
    if (evidence == 0) return;
    link->told_lost = true;
    link->lost_evidence = evidence;
    link->lost_status = status;
    cc__links_tell(links, link);
    if (ask) cc__links_probe(links, link);
}

void cc__links_dial(cc__links *links, cc__link *link, const cc__link *relay) {
    note_break(links, link);
    close_channels(links, link, false);
    link->fading_ns = CC__NEVER;
    link->state = CC__LINK_DIALING;
    link->relayed = relay != NULL;
    cc__link_trace(links, link, CC_TRACE_LINK_DIALLED, 0, relay != NULL);
    uint64_t nonce = cc__links_nonce(links); /* the peer's clock may be ahead, if it dialled once */
    link->nonce = nonce > link->nonce ? nonce : link->nonce + 1;
    for (uint32_t i = 0; i <= links->streams; i++) {
        cc_hello hello = cc__links_hello(links, link, i, link->nonce);
        cc_stream stream = CC_STREAM_NONE;
        cc_status status;
        if (relay)
            status = OPS(links)->connect_through(links->transport, relay->address, &hello, &stream);
        else
            status = OPS(links)->connect(links->transport, link->address, &hello, &stream);
        if (status != CC_OK) {
            cc__links_break(links, link, CC_EVIDENCE_CLOSED, status);
            return;
        }
        cc__links_adopt(links, link, i, stream);
    }
}

static cc__link *new_link(cc__links *links, const cc_peer_id *id) {
    if (links->count >= CC_LINKS_MAX) return NULL;
    cc__link *link = calloc(1, sizeof *link);
    if (link == NULL) return NULL;
    link->id = *id;
    link->probe_ns = link->fading_ns = link->unheard_ns = CC__NEVER;
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
    OPS(links)->route(links->transport, &link->id, link->address);
    link->dials = self_serial > member->serial;
    link->wanted = true;
    link->accused = false;
    link->since_ns = cc__now(&links->clock);
    cc__watch_heard(&link->watch, &links->detector, link->since_ns);
    bool connected = link->state == CC__LINK_DIALING || cc__link_lives(link);
    if (link->dials && !connected) cc__links_dial(links, link, NULL);
    if (!link->dials && link->state == CC__LINK_BROKEN) cc__links_probe(links, link);
    return link;
}

void cc__links_drop(cc__links *links, cc__link *link) {
    cc__links_break(links, link, 0, CC_CLOSED);
    cc__links_end_probe(links, link);
    OPS(links)->route(links->transport, &link->id, NULL);
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
    cc__session_free(&link->session);
    free(link);
}

/* All streams are open and the peer has said what it knows: of the same session as this side, or of
 * none, or of one that is no more. */
static void come_up(cc__links *links, cc__link *link) {
    cc__session *session = &link->session;
    link->state = CC__LINK_UP;
    link->sent_ns = 0;
    link->up_ns = cc__now(&links->clock);
    cc__watch_heard(&link->watch, &links->detector, link->up_ns);
    links->current = NULL; /* that it is up is told before anything that it brings */
    cc__links_resume_later(links, &link->channels[0]);
    if (session->id && session->id == link->their_session) {
        if (!cc__session_confirm(session, link->their_received)) {
            cc__links_accuse(links, link);
            return;
        }
        cc__session_again(session);
        session->told = session->received;
        link->holding = link->told_mended = true;
        cc__links_tell(links, link);
        cc__links_flush(links, link);
        return;
    }
    if (session->id) { /* the peer lost its side */
        link->told_lost = true;
        link->lost_evidence = CC_EVIDENCE_CLOSED;
        link->lost_status = CC_CLOSED;
    }
    end_session(link);
    cc__session_start(session, link->nonce);
    link->broken_ns = link->up_ns;
    link->told_connected = true;
    cc__links_tell(links, link);
    if (link->dials) cc__links_gauge(links, link);
}

static bool all_open(const cc__links *links, const cc__link *link) {
    return link->open_streams > links->streams;
}

void cc__links_greet(cc__links *links, cc__link *link, const cc__frame *frame) {
    if (link->greeted) {
        cc__links_accuse(links, link);
        return;
    }
    link->greeted = true;
    link->their_session = frame->epoch;
    link->their_received = frame->sequence;
    if (all_open(links, link)) come_up(links, link);
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
    if (!all_open(links, link)) return;
    cc__frame hello = {
        .type = CC__SESSION, .epoch = link->session.id, .sequence = link->session.received};
    cc__links_send_raw(links, link, &hello);
    cc__links_resume_later(links, channel);
    if (link->greeted) come_up(links, link);
}

void cc__links_on_connected(cc__links *links, cc_stream stream) {
    if (cc__links_probe_connected(links, stream)) return;
    cc__channel *channel = cc__links_channel_of(links, stream);
    if (channel) channel_is_open(links, channel);
}

/* The peer dials anew. Whether it still knows the session, it says next. */
static void replace(cc__links *links, cc__link *link) {
    bool was_up = link->state == CC__LINK_UP;
    note_break(links, link);
    if (was_up) cc__link_trace(links, link, CC_TRACE_LINK_BROKEN, CC_CLOSED, CC_EVIDENCE_CLOSED);
    close_channels(links, link, false);
    link->fading_ns = CC__NEVER;
    link->state = CC__LINK_DIALING;
}

void cc__links_on_accepted(cc__links *links, const cc_transport_event *event) {
    const cc_hello *hello = &event->hello;
    cc__link *link = NULL;
    if (hello->stream <= links->streams) {
        link = cc__links_find(links, &hello->from);
        if (link == NULL) link = new_link(links, &hello->from);
    }
    if (hello->stream == CC_HELLO_PROBE) {
        cc__link *asker = cc__links_find(links, &hello->from);
        if (asker) cc__links_on_probed(links, asker);
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
        replace(links, link);
        link->nonce = hello->link;
    }
    cc__channel *channel = &link->channels[hello->stream];
    if (channel->stream != CC_STREAM_NONE) { /* the same stream twice under one nonce */
        OPS(links)->close(links->transport, event->stream, 0);
        return;
    }
    cc__links_adopt(links, link, hello->stream, event->stream);
    channel_is_open(links, channel);
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
    if (cc__links_probe_closed(links, stream, status)) return;
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
        look_again(links, link, dial_again_ns(links));
        return;
    }
    cc_evidence_kind evidence = CC_EVIDENCE_CLOSED;
    if (!channel->open && cc__proves_death(status)) evidence = CC_EVIDENCE_REFUSED;
    cc__links_break(links, link, evidence, status);
}

void cc__links_stop(cc__links *links, bool abort) {
    for (cc__link *link = links->first; link; link = link->next)
        close_channels(links, link, !abort);
    while (links->first) cc__links_drop(links, links->first);
}
