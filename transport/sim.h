/* A world of simulated peers: one process, one thread, virtual time, a seed. Transport "sim" lives
 * in it (cc_options.world). Everything that happens is a function of the seed and of the calls.
 *
 * Delivery: each write becomes deliverable latency later, in random pieces (so that short reads
 * and writes are the rule). Streams keep their order; different streams do not wait for each other.
 * A dial through another peer is two streams that this one connects, each with delays and faults of
 * its own, so that peer must be polled like all others.
 * A peer is named by its address as cc_context_address gives it. */
#ifndef CC_TRANSPORT_SIM_H
#define CC_TRANSPORT_SIM_H

#include <stdint.h>

typedef struct cc_sim cc_sim;

cc_sim *cc_sim_open(uint64_t seed);
void cc_sim_close(cc_sim *sim); /* after all its contexts are closed */

int64_t cc_sim_now_ns(const cc_sim *sim);
void cc_sim_advance(cc_sim *sim, int64_t to_ns); /* time never goes back */
int64_t cc_sim_next_ns(const cc_sim *sim);       /* the next delivery; INT64_MAX: none */

/* One-way delay of bytes from now on, drawn uniformly for each write; default 1 to 50 us. */
void cc_sim_set_latency(cc_sim *sim, int64_t low_ns, int64_t high_ns);
/* What a stream's path is said to carry (nothing is slowed down by it); default 10 GB/s. */
void cc_sim_set_bandwidth(cc_sim *sim, uint64_t bytes_per_s);
/* The clocks of peers opened from now on: at `offset_ns` when the world's is at 0, and fast by
 * `fast_ppm` millionths (negative: slow). What cc_step returns is in that clock. Default 0, 0. */
void cc_sim_set_clock(cc_sim *sim, int64_t offset_ns, int32_t fast_ppm);
/* Bytes a stream holds before send is CC_PENDING; default 65536. */
void cc_sim_set_window(cc_sim *sim, uint32_t bytes);

/* How many frames a peer has sent so far. */
uint64_t cc_sim_sent(cc_sim *sim, const char *address);

/* Faults. Addresses are those of peers. */
/* After so many frames nothing that it sends arrives: it dies between two of them. */
void cc_sim_mute(cc_sim *sim, const char *address, uint64_t frames);
void cc_sim_kill(cc_sim *sim, const char *address); /* its streams reset, dials are refused */
void cc_sim_pause(cc_sim *sim, const char *address, int paused); /* nothing leaves or reaches it */
void cc_sim_cut(cc_sim *sim, const char *from, const char *to,
                int cut);                                     /* one direction: held back */
void cc_sim_break(cc_sim *sim, const char *a, const char *b); /* resets all streams between both */
/* Of what is sent next on each stream that there is, the first byte arrives with all bits turned: no
 * magic of any frame. */
void cc_sim_corrupt(cc_sim *sim, const char *from, const char *to);

#endif
