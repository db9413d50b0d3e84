/* Faults between a daemon and its kernel: loaded into the daemon before libc (LD_PRELOAD), so that the true binary meets them.
 *
 * In: the file $FAULTS_ORDER, words that say which faults there are now (below), `clock=SECONDS` among them. Out: what the daemon sees of
 * sendto, recvmsg and clock_gettime; each fault that bit is a line in $FAULTS_BITES. What always holds: without an order nothing differs.
 *
 * A transaction is a batch to nf_tables. Faults of transactions, by word: not sent: enobufs-send, eintr-send; refused by the kernel's
 * answer, nothing done: enomem, erestart (the whole), ebusy (an operation in the middle); lost-request (never arrives, no answer);
 * committed, and the answer does not arrive: lost-answer (nothing comes), overrun-answer (ENOBUFS), torn-answer (half a message).
 * Faults of dumps from nf_tables: dump-interrupted (each part says so), dump-eintr, dump-enomem (refused), dump-overrun (ENOBUFS),
 * dump-truncated (longer than the buffer), dump-torn (half a message), dump-silent (no answer).
 * Of events: event-overrun (ENOBUFS once for each order). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SOCKETS = 1024, ANSWERS = 256 };

/* What a socket hears next in place of the kernel. */
struct state {
	enum { NOTHING, FORGED, SILENCE, OVERRUN, TORN, DUMP_INTERRUPTED, DUMP_TRUNCATED, DUMP_TORN } next;
	unsigned char forged[ANSWERS];
	size_t length;
};
static struct state states[SOCKETS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void order(char *words, size_t size)
{
	int saved = errno;
	const char *path = getenv("FAULTS_ORDER");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t length = fd < 0 ? 0 : read(fd, words + 1, size - 3);
	if (fd >= 0)
		close(fd);
	length = length < 0 ? 0 : length;
	words[0] = ' ';
	words[length + 1] = ' ';
	words[length + 2] = 0;
	errno = saved;
}

static int has(const char *words, const char *word)
{
	char whole[64];
	snprintf(whole, sizeof whole, " %s ", word);
	return strstr(words, whole) != NULL;
}

static void bite(const char *word)
{
	int saved = errno;
	int fd = open(getenv("FAULTS_BITES"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && dprintf(fd, "%s\n", word) >= 0)
		close(fd);
	errno = saved;
}

static int is_netfilter(int fd)
{
	int saved = errno, domain = 0, protocol = -1;
	socklen_t size = sizeof domain;
	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	size = sizeof protocol;
	getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
	errno = saved;
	return fd >= 0 && fd < SOCKETS && domain == AF_NETLINK && protocol == NETLINK_NETFILTER;
}

static int hears_events(int fd)
{
	int saved = errno;
	struct sockaddr_nl own = { 0 };
	socklen_t size = sizeof own;
	getsockname(fd, (struct sockaddr *)&own, &size);
	errno = saved;
	return own.nl_groups != 0;
}

/* An answer with this error to the message of this number. */
static void forge(struct state *state, unsigned seq, int error)
{
	struct { struct nlmsghdr head; struct nlmsgerr error; } answer;
	memset(&answer, 0, sizeof answer);
	answer.head.nlmsg_len = sizeof answer;
	answer.head.nlmsg_type = NLMSG_ERROR;
	answer.head.nlmsg_seq = seq;
	answer.error.error = -error;
	if (state->length + sizeof answer > ANSWERS)
		abort();
	memcpy(state->forged + state->length, &answer, sizeof answer);
	state->length += sizeof answer;
	state->next = FORGED;
}

/* The operation in the middle is refused, and the last one, as each is behind a refused one. */
static void refuse_operation(struct state *state, const struct nlmsghdr *head, size_t length, int error)
{
	unsigned middle = 0, last = 0, count = 0;
	const struct nlmsghdr *at = head;
	for (int left = (int)length; NLMSG_OK(at, left); at = NLMSG_NEXT(at, left))
		if (at->nlmsg_type >= NLMSG_MIN_TYPE && at->nlmsg_type > NFNL_MSG_BATCH_END) {
			last = at->nlmsg_seq;
			if (count++ % 2 == 0)
				middle++;
		}
	unsigned wanted = middle, number = 0;
	at = head;
	for (int left = (int)length; NLMSG_OK(at, left); at = NLMSG_NEXT(at, left))
		if (at->nlmsg_type > NFNL_MSG_BATCH_END && ++number == wanted)
			forge(state, at->nlmsg_seq, error);
	if (wanted != number)
		forge(state, last, error);
}

/* Whether the batch goes to the kernel; else `error` is sendto's, 0 for sent. */
static int transaction(struct state *state, const char *words, const struct nlmsghdr *head, size_t length, int *error)
{
	struct { const char *word; int error; } unsent[] = { { "enobufs-send", ENOBUFS }, { "eintr-send", EINTR } };
	for (size_t i = 0; i < sizeof unsent / sizeof *unsent; i++)
		if (has(words, unsent[i].word)) {
			bite(unsent[i].word);
			*error = unsent[i].error;
			return 0;
		}
	struct { const char *word; int error; } whole[] = { { "enomem", ENOMEM }, { "erestart", ERESTART } };
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
		if (has(words, whole[i].word)) {
			bite(whole[i].word);
			forge(state, head->nlmsg_seq, whole[i].error);
			return 0;
		}
	if (has(words, "ebusy")) {
		bite("ebusy");
		refuse_operation(state, head, length, EBUSY);
		return 0;
	}
	if (has(words, "lost-request")) {
		bite("lost-request");
		state->next = SILENCE;
		return 0;
	}
	struct { const char *word; int next; } lost[] = {
		{ "lost-answer", SILENCE }, { "overrun-answer", OVERRUN }, { "torn-answer", TORN } };
	for (size_t i = 0; i < sizeof lost / sizeof *lost; i++)
		if (has(words, lost[i].word)) {
			bite(lost[i].word);
			state->next = lost[i].next;
		}
	return 1;
}

static int dump(struct state *state, const char *words, const struct nlmsghdr *head)
{
	struct { const char *word; int error; } refused[] = { { "dump-eintr", EINTR }, { "dump-enomem", ENOMEM } };
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
		if (has(words, refused[i].word)) {
			bite(refused[i].word);
			forge(state, head->nlmsg_seq, refused[i].error);
			return 0;
		}
	struct { const char *word; int next; } broken[] = {
		{ "dump-interrupted", DUMP_INTERRUPTED }, { "dump-overrun", OVERRUN }, { "dump-truncated", DUMP_TRUNCATED },
		{ "dump-torn", DUMP_TORN }, { "dump-silent", SILENCE } };
	for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
		if (has(words, broken[i].word)) {
			bite(broken[i].word);
			state->next = broken[i].next;
		}
	return state->next != SILENCE;
}

ssize_t sendto(int fd, const void *bytes, size_t length, int flags, const struct sockaddr *to, socklen_t size)
{
	ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
	const struct nlmsghdr *head = bytes;
	char words[256];
	order(words, sizeof words);
	if (words[1] == ' ' || length < sizeof *head || !is_netfilter(fd))
		return real(fd, bytes, length, flags, to, size);
	int goes = 1, error = 0;
	pthread_mutex_lock(&lock);
	struct state *state = &states[fd];
	state->next = NOTHING;
	state->length = 0;
	if (head->nlmsg_type == NFNL_MSG_BATCH_BEGIN)
		goes = transaction(state, words, head, length, &error);
	else if (head->nlmsg_type >> 8 == NFNL_SUBSYS_NFTABLES && (head->nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP)
		goes = dump(state, words, head);
	pthread_mutex_unlock(&lock);
	if (goes)
		return real(fd, bytes, length, flags, to, size);
	if (error) {
		errno = error;
		return -1;
	}
	return (ssize_t)length;
}

static void from_kernel(struct msghdr *message)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	if (message->msg_name && message->msg_namelen >= sizeof kernel)
		memcpy(message->msg_name, &kernel, sizeof kernel);
	message->msg_namelen = sizeof kernel;
	message->msg_controllen = 0;
	message->msg_flags = 0;
}

static ssize_t fails(int error)
{
	errno = error;
	return -1;
}

/* As long as the socket would have waited. */
static ssize_t nothing_comes(int fd, int flags)
{
	struct timeval patience = { 0 };
	socklen_t size = sizeof patience;
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, &size);
	struct timespec wait = { patience.tv_sec, patience.tv_usec * 1000 };
	if (!(flags & MSG_DONTWAIT))
		nanosleep(&wait, NULL);
	return fails(EAGAIN);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
	if (!is_netfilter(fd))
		return real(fd, message, flags);
	if (hears_events(fd)) {
		static struct timespec last;
		char words[256];
		struct stat file;
		order(words, sizeof words);
		if (has(words, "event-overrun") && stat(getenv("FAULTS_ORDER"), &file) == 0
		    && memcmp(&file.st_mtim, &last, sizeof last) != 0) {
			last = file.st_mtim;
			bite("event-overrun");
			return fails(ENOBUFS);
		}
		return real(fd, message, flags);
	}
	pthread_mutex_lock(&lock);
	struct state state = states[fd];
	if (state.next != DUMP_INTERRUPTED)
		states[fd].next = NOTHING;
	pthread_mutex_unlock(&lock);
	if (state.next == NOTHING)
		return real(fd, message, flags);
	if (state.next == FORGED) {
		memcpy(message->msg_iov[0].iov_base, state.forged, state.length);
		from_kernel(message);
		return (ssize_t)state.length;
	}
	if (state.next == SILENCE || state.next == OVERRUN) {
		while (real(fd, message, flags | MSG_DONTWAIT) >= 0)
			;
		return state.next == SILENCE ? nothing_comes(fd, flags) : fails(ENOBUFS);
	}
	ssize_t length = real(fd, message, flags);
	struct nlmsghdr *head = message->msg_iov[0].iov_base;
	if (length < (ssize_t)sizeof *head)
		return length;
	switch (state.next) {
	case DUMP_INTERRUPTED:
		for (int left = (int)length; NLMSG_OK(head, left); head = NLMSG_NEXT(head, left))
			head->nlmsg_flags |= NLM_F_DUMP_INTR;
		return length;
	case DUMP_TRUNCATED:
		return (ssize_t)message->msg_iov[0].iov_len + 1;
	default:
		return length - 5;
	}
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	int result = real(clock, time);
	if (clock == CLOCK_REALTIME && result == 0) {
		char words[256];
		order(words, sizeof words);
		const char *jump = strstr(words, " clock=");
		time->tv_sec += jump ? atol(jump + 7) : 0;
	}
	return result;
}
