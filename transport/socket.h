/* Sockets, addresses and their options: what TCP needs of the operating system, and nothing of
 * what is said over it. All sockets are non-blocking and closed on exec. */
#ifndef CC_TRANSPORT_SOCKET_H
#define CC_TRANSPORT_SOCKET_H

#include "csrc/collectives.h"

#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define CC__NOTSENT_BYTES (256 * 1024) /* a bulk stream's unsent bytes in the kernel */
#define CC__CONGESTION_MAX 16

typedef struct cc__address {
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    };
    socklen_t bytes;
} cc__address;

/* What every socket of a transport is set to. Copied from cc_options, which need not live on. */
typedef struct cc__socket_options {
    char congestion[CC__CONGESTION_MAX]; /* empty: chosen per connection */
    char interface[IF_NAMESIZE];         /* empty: any */
    uint32_t send_buffer_bytes, receive_buffer_bytes;
} cc__socket_options;

/* CC_INVALID, with a message: the options cannot be right. */
cc_status cc__socket_options_take(const cc_options *options, cc__socket_options *out,
                                  char *message);

/* "1.2.3.4:80", "[::1]:80", "[fe80::1%eth0]:80". CC_INVALID: something else. */
cc_status cc__address_parse(const char *text, cc__address *out);

/* A numeric host alone, without brackets; the port is 0. */
cc_status cc__address_parse_host(const char *host, cc__address *out);

uint16_t cc__address_port(const cc__address *address);
void cc__address_set_port(cc__address *address, uint16_t port);
int cc__address_is_loopback(const cc__address *address);
int cc__address_is_wildcard(const cc__address *address);
int cc__address_same_host(const cc__address *a, const cc__address *b);

/* The best address of a family: of `interface`, or with NULL of any that is not loopback. Nonzero:
 * found. */
int cc__address_of_interface(const char *interface, int family, cc__address *out);

/* The text that cc__address_parse takes; CC_ADDRESS_MAX bytes. */
void cc__address_text(const cc__address *address, char *out);

/* What others should dial: `advertise` is NULL, a numeric host or a host:port; the rest comes from
 * the address that is bound. A wildcard address becomes the first address of this host that is not
 * loopback, else loopback. CC_INVALID, with a message. */
cc_status cc__address_advertised(const cc__address *bound, const char *advertise, char *out,
                                 char *message);

/* Loopback, or an address that one of this host's interfaces has. */
int cc__address_is_local(const cc__address *address);

/* Binds and listens. *fd is the caller's. */
cc_status cc__socket_listen(const cc_options *options, const cc__socket_options *set, int *fd,
                            cc__address *bound, char *message);

/* Begins to connect. *failed: why it is over already, or 0. An error: there is no socket. */
cc_status cc__socket_dial(const cc__address *to, const cc__socket_options *set, int *fd,
                          int *failed);

/* For a connection that is up: options, and congestion control by who is at the other end. */
void cc__socket_tune(int fd, const cc__socket_options *set);

/* For a bulk stream: keep little in the kernel that is not on its way yet. */
void cc__socket_tune_bulk(int fd);

/* As cc_transport_ops.network, of one connection. */
void cc__socket_network(int fd, cc_network *out);

/* For both connections of a relay, which has no heartbeats: the system asks whether a silent host
 * is still there. */
void cc__socket_tune_relay(int fd, uint32_t dead_ms);

/* What has gone wrong with a connection that the system told of, or 0. It is told once. */
int cc__socket_error(int fd);

/* As above, when connect has told its result. */
int cc__socket_dial_error(int fd);

/* What a failed connect, read or write means to the caller of a transport. */
cc_status cc__socket_dial_status(int error);
cc_status cc__socket_io_status(int error);

#endif
