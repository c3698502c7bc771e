/* Who moves a context: the caller that waits, else a thread.
 *
 * A caller that waits takes the token and drives, so that a small operation costs no hand-off
 * between threads. It spins for a moment, giving way to whoever else wants the core (there may be more
 * peers than cores), then blocks in the transport. When nobody waits, the progress thread drives: blocked in the transport
 * while operations are open, else looking in every few milliseconds. */
#include "csrc/group/context.h"

#include <errno.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

/* Of this machine, not of the protocol: what a hand-off and a wake-up cost. */
#define SPIN_NS 200000LL         /* after the last thing that moved */
#define IDLE_NS 4000000LL        /* between looks when nothing is open */
#define BLOCK_MAX_NS 100000000LL /* so that a driver notices what nobody told it */

void cc__lock(cc_context *context) {
    atomic_fetch_add(&context->wanting, 1);
    pthread_mutex_lock(&context->lock);
    atomic_fetch_sub(&context->wanting, 1);
}

void cc__unlock(cc_context *context) {
    pthread_mutex_unlock(&context->lock);
}

static bool complete(const cc_work *work) {
    return atomic_load_explicit(&work->complete, memory_order_acquire);
}

/* Sleeps on a condition for so long at most. Under the lock. */
static void sleep_on(cc_context *context, pthread_cond_t *condition, int64_t duration_ns) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += duration_ns / 1000000000;
    until.tv_nsec += duration_ns % 1000000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(condition, &context->lock, &until);
}

/* Lets others at the lock and waits for the transport. Under the lock, which it gives up. */
static void wait_transport(cc_context *context, int64_t timeout_ns) {
    pthread_mutex_unlock(&context->lock);
    for (int i = 0; i < 1000 && atomic_load(&context->wanting) > 0; i++) sched_yield();
    if (timeout_ns == 0) sched_yield();
    context->transport->ops->wait(context->transport, timeout_ns);
    pthread_mutex_lock(&context->lock);
}

static int64_t until(int64_t now, int64_t then, int64_t most) {
    int64_t left = then > now ? then - now : 0;
    return left < most ? left : most;
}

static void release_token(cc_context *context) {
    context->driving = false;
    if (context->sleepers > 0)
        pthread_cond_broadcast(&context->changed);
    else if (context->thread_idle && cc__context_has_work(context))
        pthread_cond_signal(&context->work_due);
}

/* Drives until the work is complete or the deadline passes. Under the lock. */
static void drive(cc_context *context, const cc_work *work, int64_t deadline_ns) {
    context->driving = true;
    int64_t now = cc__now(&context->clock), spin_until = now + SPIN_NS;
    while (!complete(work) && !context->closed && now < deadline_ns) {
        bool moved = cc__context_step(context);
        if (complete(work)) break;
        now = cc__now(&context->clock);
        if (moved) spin_until = now + SPIN_NS;
        int64_t timeout_ns = 0;
        if (!context->more && now >= spin_until) {
            timeout_ns = until(now, deadline_ns, BLOCK_MAX_NS);
            timeout_ns = until(now, context->next_ns, timeout_ns);
        }
        wait_transport(context, timeout_ns);
    }
    release_token(context);
}

cc_status cc__progress_wait(cc_context *context, cc_work *work, int64_t timeout_ms) {
    if (complete(work)) return work->info.status;
    if (context->forked) return CC_CLOSED;
    if (timeout_ms <= 0 || context->options.manual) return CC_PENDING;
    int64_t now = cc__now(&context->clock);
    int64_t deadline_ns =
        timeout_ms < INT64_MAX / (2 * CC__MS) ? now + timeout_ms * CC__MS : CC__NEVER;
    cc__lock(context);
    while (!complete(work) && !context->closed && now < deadline_ns) {
        if (!context->driving) {
            drive(context, work, deadline_ns);
        } else {
            context->token_wanted = true;
            context->transport->ops->wake(context->transport);
            context->sleepers++;
            sleep_on(context, &context->changed, until(now, deadline_ns, BLOCK_MAX_NS));
            context->sleepers--;
        }
        now = cc__now(&context->clock);
    }
    cc__unlock(context);
    return complete(work) ? work->info.status : CC_PENDING;
}

/* ---- the thread --------------------------------------------------------------------------- */

static void *progress_thread(void *argument) {
    cc_context *context = argument;
    pthread_mutex_lock(&context->lock);
    while (!context->closed) {
        bool neglected = cc__now(&context->clock) - context->stepped_ns >= IDLE_NS / 2;
        bool wanted = neglected || cc__context_has_work(context);
        if (!context->driving && context->sleepers == 0 && wanted) {
            context->driving = true;
            context->token_wanted = false;
            wait_transport(context, 0);
            cc__context_step(context);
            while (!context->closed && !context->token_wanted &&
                   (context->more || cc__context_has_work(context))) {
                int64_t now = cc__now(&context->clock);
                wait_transport(context,
                               context->more ? 0 : until(now, context->next_ns, BLOCK_MAX_NS));
                cc__context_step(context);
            }
            context->driving = false;
            if (context->sleepers > 0) pthread_cond_broadcast(&context->changed);
        }
        if (context->closed) break;
        context->thread_idle = true;
        sleep_on(context, &context->work_due, IDLE_NS);
        context->thread_idle = false;
    }
    pthread_mutex_unlock(&context->lock);
    return NULL;
}

void cc__progress_kick(cc_context *context) {
    if (context->driving)
        context->transport->ops->wake(context->transport);
    else if (context->thread_idle)
        pthread_cond_signal(&context->work_due);
}

cc_status cc__progress_start(cc_context *context) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&context->lock, NULL);
    pthread_cond_init(&context->changed, &monotonic);
    pthread_cond_init(&context->work_due, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (context->options.manual) return CC_OK;
    if (pthread_create(&context->thread, NULL, progress_thread, context) != 0) return CC_SYSTEM;
    context->has_thread = true;
    return CC_OK;
}

void cc__progress_stop(cc_context *context) {
    cc__lock(context);
    context->transport->ops->wake(context->transport);
    pthread_cond_broadcast(&context->changed);
    pthread_cond_signal(&context->work_due);
    while (context->driving || context->sleepers > 0) {
        sleep_on(context, &context->changed, CC__MS);
        context->transport->ops->wake(context->transport);
    }
    cc__unlock(context);
    if (context->has_thread) pthread_join(context->thread, NULL);
    context->has_thread = false;
}

void cc__progress_goodbye(cc_context *context) {
    int64_t end = cc__now(&context->clock) + context->options.timeouts.linger_ms * CC__MS;
    cc__links_goodbye(&context->links);
    for (int64_t now = 0; !cc__links_drained(&context->links) && now < end;) {
        if (context->options.manual) return; /* nobody lets time pass meanwhile */
        wait_transport(context, until(cc__now(&context->clock), end, CC__MS));
        cc__context_step(context);
        now = cc__now(&context->clock);
    }
}

/* ---- fork --------------------------------------------------------------------------------- */

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t registry_once = PTHREAD_ONCE_INIT;
static cc_context *registry;

static void before_fork(void) {
    pthread_mutex_lock(&registry_lock);
    for (cc_context *context = registry; context; context = context->next) cc__lock(context);
}

static void after_fork_parent(void) {
    for (cc_context *context = registry; context; context = context->next) cc__unlock(context);
    pthread_mutex_unlock(&registry_lock);
}

/* The child must not keep the parent's connections open: the parent's death has to be seen. */
static void after_fork_child(void) {
    for (cc_context *context = registry; context; context = context->next) {
        context->transport->ops->forked(context->transport);
        close(context->event_fd);
        if (context->event_write_fd != context->event_fd) close(context->event_write_fd);
        context->event_fd = context->event_write_fd = -1;
        context->closed = context->forked = true;
        context->has_thread = false;
        cc__unlock(context);
    }
    registry = NULL;
    pthread_mutex_unlock(&registry_lock);
}

static void register_handlers(void) {
    pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

void cc__progress_register(cc_context *context) {
    pthread_once(&registry_once, register_handlers);
    pthread_mutex_lock(&registry_lock);
    context->next = registry;
    registry = context;
    pthread_mutex_unlock(&registry_lock);
}

void cc__progress_unregister(cc_context *context) {
    pthread_mutex_lock(&registry_lock);
    cc_context **at = &registry;
    while (*at && *at != context) at = &(*at)->next;
    if (*at) *at = context->next;
    pthread_mutex_unlock(&registry_lock);
}
