/* Asking after a peer that is not heard: whether it still listens, and whether others reach it.
 *
 * Direct: the side of a broken link that does not dial asks the peer's address. A refusal proves that
 * the process is gone.
 * Indirect: who has heard nothing for the suspect time asks through other peers, one after another
 * (as SWIM does: Das, Gupta & Motivala, 2002). Whoever gets an answer is a way around the broken
 * path, and the side that dials dials all streams of the link through it; for the other side, the
 * question itself tells the peer that it is not heard. From time to time a link that goes through
 * another peer tries the direct way again. */
#include "csrc/link/internal.h"

#include <string.h>

#define OPS(links) ((links)->transport->ops)
#define RELAYS_ASKED 3 /* between suspicion and death */

static int64_t suspect_ns(const cc__links *links) {
    return links->timeouts.suspect_ms * CC__MS;
}

/* Whether nothing was heard of a peer for the suspect time, or it does not hear this one. */
static bool is_suspect(const cc__links *links, const cc__link *link, int64_t now) {
    if (now >= link->unheard_ns) return true;
    int64_t dead = cc__watch_deadline(&link->watch, &links->detector);
    return now >= dead - links->timeouts.dead_ms * CC__MS + suspect_ns(links);
}

void cc__links_end_probe(cc__links *links, cc__link *link) {
    if (link->probe != CC_STREAM_NONE) OPS(links)->close(links->transport, link->probe, 0);
    link->probe = CC_STREAM_NONE;
    link->probe_via = (cc_peer_id){0};
}

static bool is_indirect(const cc__link *link) {
    static const cc_peer_id nobody;
    return memcmp(link->probe_via.bytes, nobody.bytes, sizeof nobody.bytes) != 0;
}

/* `relay`: NULL, or whom to ask through. */
static void probe(cc__links *links, cc__link *link, const cc__link *relay) {
    if (link->probe != CC_STREAM_NONE || link->address[0] == 0) return;
    cc__link_trace(links, link, CC_TRACE_LINK_PROBED, 0, relay != NULL);
    cc_hello hello = cc__links_hello(links, link, CC_HELLO_PROBE, cc__links_nonce(links));
    cc_status status;
    if (relay)
        status =
            OPS(links)->connect_through(links->transport, relay->address, &hello, &link->probe);
    else
        status = OPS(links)->connect(links->transport, link->address, &hello, &link->probe);
    if (status != CC_OK) link->probe = CC_STREAM_NONE;
    if (status == CC_OK && relay) link->probe_via = relay->id;
}

void cc__links_probe(cc__links *links, cc__link *link) {
    probe(links, link, NULL);
}

void cc__links_probe_again(cc__links *links, cc__link *link, int64_t now) {
    if (now < link->probe_ns) return;
    link->probe_ns = CC__NEVER;
    if (!link->wanted) return;
    if (link->state == CC__LINK_IDLE && link->dials)
        cc__links_dial(links, link, NULL);
    else if (link->state == CC__LINK_BROKEN || (link->state == CC__LINK_IDLE && link->session.id))
        probe(links, link, NULL);
}

/* ---- through others ----------------------------------------------------------------------- */

/* The next of those who are heard themselves, and directly. NULL: all were asked. */
static const cc__link *next_relay(const cc__links *links, const cc__link *link, int64_t now) {
    uint32_t skip = link->n_asked;
    for (const cc__link *other = links->first; other; other = other->next) {
        bool may_help = other != link && other->wanted && other->state == CC__LINK_UP &&
                        !other->relayed && !is_suspect(links, other, now);
        if (may_help && skip-- == 0) return other;
    }
    return NULL;
}

void cc__links_look_around(cc__links *links, cc__link *link, int64_t now) {
    if (!link->wanted || link->goodbye || link->session.id == 0) return;
    /* Who slept was not heard for that reason alone; and in the end the other would have said so. */
    bool slept = link->unheard_ns - 2 * links->timeouts.beat_ms * CC__MS <= links->late_ns;
    bool is_old = now - links->timeouts.dead_ms * CC__MS > link->unheard_ns;
    if (slept || is_old) link->unheard_ns = CC__NEVER;
    if (!is_suspect(links, link, now)) {
        if (is_indirect(link)) cc__links_end_probe(links, link);
        link->n_asked = 0;
        bool is_due = link->relayed && link->state == CC__LINK_UP && now >= link->direct_ns;
        if (!is_due) return;
        link->direct_ns = now + links->timeouts.connect_ms * CC__MS;
        cc__links_end_probe(links, link);
        probe(links, link, NULL);
        return;
    }
    bool is_dialling_around = link->relayed && link->state == CC__LINK_DIALING;
    if (now < link->ask_ns || is_dialling_around) return;
    cc__links_end_probe(links, link);
    link->ask_ns = now + (links->timeouts.dead_ms * CC__MS - suspect_ns(links)) / RELAYS_ASKED;
    const cc__link *relay = next_relay(links, link, now);
    link->n_asked = relay ? link->n_asked + 1 : 0;
    if (relay) probe(links, link, relay);
}

/* ---- what came of it ---------------------------------------------------------------------- */

static cc__link *of_probe(cc__links *links, cc_stream stream) {
    cc__link *link = links->first;
    while (link && link->probe != stream) link = link->next;
    return link;
}

bool cc__links_probe_connected(cc__links *links, cc_stream stream) {
    cc__link *link = of_probe(links, stream);
    if (link == NULL) return false;
    cc_peer_id via = link->probe_via;
    bool around = is_indirect(link);
    cc__links_end_probe(links, link); /* it lives: that was all there was to ask */
    bool heard = !is_suspect(links, link, cc__now(&links->clock)); /* meanwhile */
    const cc__link *relay = around && !heard ? cc__links_find(links, &via) : NULL;
    if (relay && link->dials)
        cc__links_dial(links, link, relay);
    else if (!around && link->relayed && link->state == CC__LINK_UP)
        cc__links_dial(links, link, NULL);
    else if (cc__link_mends(link))
        cc__links_look_later(links, link);
    return true;
}

void cc__links_on_probed(cc__links *links, cc__link *link) {
    if (!link->dials || link->state != CC__LINK_UP || link->unheard_ns != CC__NEVER) return;
    /* Unless this side learns in a moment that the connection broke. */
    link->unheard_ns = cc__now(&links->clock) + links->timeouts.beat_ms * CC__MS;
}

/* A dying process closes its connections before its listener: a quick probe is neither answered nor
 * refused, but reset. It is asked again until that tells, or silence has. */
static void ask_later(cc__links *links, cc__link *link) {
    int64_t now = cc__now(&links->clock);
    if (now - link->broken_ns <= links->timeouts.dead_ms * CC__MS)
        cc__links_look_later(links, link);
}

bool cc__links_probe_closed(cc__links *links, cc_stream stream, cc_status status) {
    cc__link *link = of_probe(links, stream);
    if (link == NULL) return false;
    bool around = is_indirect(link), is_up = link->state == CC__LINK_UP;
    cc__links_end_probe(links, link);
    if (!link->wanted || (is_up && !around)) return true;
    if (!cc__proves_death(status)) {
        if (around)
            link->ask_ns = 0; /* the next one is asked at once */
        else
            ask_later(links, link);
    } else if (link->session.id) {
        cc__links_break(links, link, CC_EVIDENCE_REFUSED, status);
    } else {
        link->told_evidence = true;
        link->more_evidence = CC_EVIDENCE_REFUSED;
        cc__links_tell(links, link);
    }
    return true;
}
