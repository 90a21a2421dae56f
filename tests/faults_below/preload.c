/* Calls of the C library for files, which fail where they are told to.

   Preloaded, it stands between Python and the C library. It looks at the calls that go to one folder: by their path,
   or by a descriptor that was opened below it. Of those it counts each one while it is armed, and strikes some. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of `OPERATIONS` in library.py. */
enum { CREATE, OPEN, READ, WRITE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, CUT, STAT, MAP, CLOSE, LOCK, DUP, COPY, LIST };
/* In the order of `MOMENTS` there. */
enum { BEFORE, AFTER, SHORT, INTERRUPT, INTERRUPT_AFTER, NOTHING };

struct fault {
    int moment, number, from, until; /* the error; the first and the last call */
    unsigned operations;             /* one bit each */
};
struct call {
    int operation, is_struck;
    char name[56];
};

#define MOST_CALLS 65536
#define MOST_FILES 4096
static const struct fault none = {NOTHING, 0, 0, 0, 0};
static char root[512];
static char names[MOST_FILES][56]; /* of the descriptors below the root, "" for others */
static struct call calls[MOST_CALLS];
static struct fault faults[8];
static int count, number_of_faults, is_armed;

void faults_root(const char *path) {
    snprintf(root, sizeof root, "%s/", path);
}
void faults_arm(const struct fault *given, int number) {
    number_of_faults = number;
    memcpy(faults, given, number * sizeof *given);
    count = 0;
    is_armed = 1;
}
void faults_disarm(void) {
    is_armed = 0;
}
int faults_count(void) {
    return count;
}
const struct call *faults_calls(void) {
    return calls;
}

static const char *base(const char *path) {
    const char *last = strrchr(path, '/');
    return last ? last + 1 : path;
}
static int is_below(const char *path) {
    return root[0] && path && !strncmp(path, root, strlen(root));
}
static int is_known(int fd) {
    return fd >= 0 && fd < MOST_FILES && names[fd][0];
}
static void know(int fd, const char *name) {
    if (fd >= 0 && fd < MOST_FILES)
        snprintf(names[fd], sizeof names[fd], "%s", name);
}

/* Count a call; returns what is to befall it. What comes before it is done here. */
static struct fault ask(int operation, const char *name) {
    struct fault found = none;
    if (!is_armed)
        return found;
    for (int i = number_of_faults - 1; i >= 0; i--)
        if (count >= faults[i].from && count <= faults[i].until && faults[i].operations >> operation & 1)
            found = faults[i];
    if (found.moment == SHORT && operation != READ && operation != WRITE && operation != COPY)
        found.moment = NOTHING;
    if (count < MOST_CALLS) {
        calls[count].operation = operation;
        calls[count].is_struck = found.moment != NOTHING;
        snprintf(calls[count].name, sizeof calls[count].name, "%s", name);
    }
    count++;
    if (found.moment == INTERRUPT)
        raise(SIGINT);
    if (found.moment == BEFORE)
        errno = found.number;
    return found;
}
/* What becomes of a call that was done: its result, or an error all the same. */
static ssize_t done(struct fault fault, ssize_t result) {
    if (fault.moment == INTERRUPT_AFTER)
        raise(SIGINT);
    if (fault.moment != AFTER)
        return result;
    errno = fault.number;
    return -1;
}
static size_t half(struct fault fault, size_t size) {
    return fault.moment == SHORT && size > 1 ? size / 2 : size;
}

#define REAL(name)                                                                                                     \
    static __typeof__(name) *real;                                                                                     \
    if (!real)                                                                                                         \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name);

/* A call that is told of by its only path or descriptor. */
#define SIMPLE(type, name, parameters, arguments, is_seen, operation, told)                                            \
    type name parameters {                                                                                             \
        REAL(name)                                                                                                     \
        struct fault fault = none;                                                                                     \
        if (!(is_seen))                                                                                                \
            return real arguments;                                                                                     \
        fault = ask(operation, told);                                                                                  \
        return fault.moment == BEFORE ? -1 : done(fault, real arguments);                                              \
    }

/* Opening and closing. */

static int opened(struct fault fault, int fd, const char *path) {
    if (fd < 0)
        return fd;
    if (fault.moment == AFTER) {
        close(fd);
        errno = fault.number;
        return -1;
    }
    know(fd, base(path));
    return done(fault, fd);
}
static int opening(int flags) {
    return flags & O_CREAT ? CREATE : OPEN;
}
#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }
#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        REAL(name)                                                                                                     \
        MODE(flags)                                                                                                    \
        if (!is_below(path))                                                                                           \
            return real(path, flags, mode);                                                                            \
        struct fault fault = ask(opening(flags), base(path));                                                          \
        return fault.moment == BEFORE ? -1 : opened(fault, real(path, flags, mode), path);                             \
    }
#define OPENS_AT(name)                                                                                                 \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        REAL(name)                                                                                                     \
        MODE(flags)                                                                                                    \
        if (!is_below(path) && !(path[0] != '/' && is_known(folder)))                                                  \
            return real(folder, path, flags, mode);                                                                    \
        struct fault fault = ask(opening(flags), base(path));                                                          \
        return fault.moment == BEFORE ? -1 : opened(fault, real(folder, path, flags, mode), path);                     \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int close(int fd) {
    REAL(close)
    if (!is_known(fd))
        return real(fd);
    char name[56];
    memcpy(name, names[fd], sizeof name);
    names[fd][0] = 0;
    struct fault fault = ask(CLOSE, name);
    int result = real(fd); /* Linux closes it, whatever it says */
    if (fault.moment != BEFORE)
        return done(fault, result);
    errno = fault.number;
    return -1;
}

static int duplicated(int fd, int copy) {
    if (copy >= 0)
        know(copy, names[fd]);
    return copy;
}
#define CONTROLS(name)                                                                                                 \
    int name(int fd, int command, ...) {                                                                               \
        REAL(name)                                                                                                     \
        va_list rest;                                                                                                  \
        va_start(rest, command);                                                                                       \
        void *value = va_arg(rest, void *);                                                                            \
        va_end(rest);                                                                                                  \
        if (!is_known(fd) || (command != F_DUPFD && command != F_DUPFD_CLOEXEC))                                       \
            return real(fd, command, value);                                                                           \
        struct fault fault = ask(DUP, names[fd]);                                                                      \
        if (fault.moment == BEFORE || fault.moment == AFTER) {                                                         \
            errno = fault.number;                                                                                      \
            return -1;                                                                                                 \
        }                                                                                                              \
        return done(fault, duplicated(fd, real(fd, command, value)));                                                  \
    }
CONTROLS(fcntl)
CONTROLS(fcntl64)

/* Reading and writing. */

#define READS(name, operation, buffer)                                                                                 \
    ssize_t name(int fd, buffer bytes, size_t size) {                                                                  \
        REAL(name)                                                                                                     \
        if (!is_known(fd))                                                                                             \
            return real(fd, bytes, size);                                                                              \
        struct fault fault = ask(operation, names[fd]);                                                                \
        return fault.moment == BEFORE ? -1 : done(fault, real(fd, bytes, half(fault, size)));                          \
    }
#define READS_AT(name, operation, buffer, place)                                                                       \
    ssize_t name(int fd, buffer bytes, size_t size, place offset) {                                                    \
        REAL(name)                                                                                                     \
        if (!is_known(fd))                                                                                             \
            return real(fd, bytes, size, offset);                                                                      \
        struct fault fault = ask(operation, names[fd]);                                                                \
        return fault.moment == BEFORE ? -1 : done(fault, real(fd, bytes, half(fault, size), offset));                  \
    }
READS(read, READ, void *)
READS(write, WRITE, const void *)
READS_AT(pread, READ, void *, off_t)
READS_AT(pread64, READ, void *, off64_t)
READS_AT(pwrite, WRITE, const void *, off_t)
READS_AT(pwrite64, WRITE, const void *, off64_t)

/* The first half of the buffers, in all bytes; returns how many there are. */
static int halves(struct iovec *parts, const struct iovec *whole, int number) {
    size_t left = 0;
    for (int i = 0; i < number; i++)
        left += whole[i].iov_len;
    left = left > 1 ? left / 2 : left;
    for (int i = 0; i < number; i++) {
        parts[i] = whole[i];
        if (whole[i].iov_len >= left) {
            parts[i].iov_len = left;
            return i + 1;
        }
        left -= whole[i].iov_len;
    }
    return number;
}
#define VECTORS(name, operation, parameters, arguments)                                                                \
    ssize_t name parameters {                                                                                          \
        REAL(name)                                                                                                     \
        if (!is_known(fd))                                                                                             \
            return real arguments;                                                                                     \
        struct fault fault = ask(operation, names[fd]);                                                                \
        struct iovec parts[1024];                                                                                      \
        if (fault.moment == SHORT) {                                                                                   \
            number = halves(parts, vector, number);                                                                    \
            vector = parts;                                                                                            \
        }                                                                                                              \
        return fault.moment == BEFORE ? -1 : done(fault, real arguments);                                              \
    }
#define VECTOR int fd, const struct iovec *vector, int number
VECTORS(readv, READ, (VECTOR), (fd, vector, number))
VECTORS(writev, WRITE, (VECTOR), (fd, vector, number))
VECTORS(preadv, READ, (VECTOR, off_t offset), (fd, vector, number, offset))
VECTORS(preadv64, READ, (VECTOR, off64_t offset), (fd, vector, number, offset))
VECTORS(pwritev, WRITE, (VECTOR, off_t offset), (fd, vector, number, offset))
VECTORS(pwritev64, WRITE, (VECTOR, off64_t offset), (fd, vector, number, offset))
VECTORS(preadv2, READ, (VECTOR, off_t offset, int flags), (fd, vector, number, offset, flags))
VECTORS(preadv64v2, READ, (VECTOR, off64_t offset, int flags), (fd, vector, number, offset, flags))
VECTORS(pwritev2, WRITE, (VECTOR, off_t offset, int flags), (fd, vector, number, offset, flags))
VECTORS(pwritev64v2, WRITE, (VECTOR, off64_t offset, int flags), (fd, vector, number, offset, flags))

SIMPLE(int, fsync, (int fd), (fd), is_known(fd), SYNC, names[fd])
SIMPLE(int, fdatasync, (int fd), (fd), is_known(fd), SYNC, names[fd])
SIMPLE(int, ftruncate, (int fd, off_t size), (fd, size), is_known(fd), CUT, names[fd])
SIMPLE(int, ftruncate64, (int fd, off64_t size), (fd, size), is_known(fd), CUT, names[fd])
SIMPLE(int, flock, (int fd, int what), (fd, what), is_known(fd), LOCK, names[fd])
SIMPLE(ssize_t, copy_file_range, (int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags),
       (from, at, to, there, half(fault, size), flags), is_known(to), COPY, names[to])
SIMPLE(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, half(fault, size)), is_known(to),
       COPY, names[to])
SIMPLE(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, half(fault, size)),
       is_known(to), COPY, names[to])

int ioctl(int fd, unsigned long request, ...) {
    REAL(ioctl)
    va_list rest;
    va_start(rest, request);
    void *value = va_arg(rest, void *);
    va_end(rest);
    if (!is_known(fd) || (request != FICLONE && request != FICLONERANGE))
        return real(fd, request, value);
    struct fault fault = ask(COPY, names[fd]);
    return fault.moment == BEFORE ? -1 : done(fault, real(fd, request, value));
}

#define MAPS(name, place)                                                                                              \
    void *name(void *start, size_t size, int protection, int flags, int fd, place offset) {                            \
        REAL(name)                                                                                                     \
        if (flags & MAP_ANONYMOUS || !is_known(fd))                                                                    \
            return real(start, size, protection, flags, fd, offset);                                                   \
        struct fault fault = ask(MAP, names[fd]);                                                                      \
        if (fault.moment == BEFORE || fault.moment == AFTER) {                                                         \
            errno = fault.number;                                                                                      \
            return MAP_FAILED;                                                                                         \
        }                                                                                                              \
        void *found = real(start, size, protection, flags, fd, offset);                                                \
        done(fault, 0);                                                                                                \
        return found;                                                                                                  \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

/* Names. */

#define PATH const char *path
SIMPLE(int, rename, (const char *from, PATH), (from, path), is_below(path), RENAME, base(path))
SIMPLE(int, renameat, (int a, const char *from, int b, PATH), (a, from, b, path), is_below(path) || is_known(b), RENAME,
       base(path))
SIMPLE(int, renameat2, (int a, const char *from, int b, PATH, unsigned flags), (a, from, b, path, flags),
       is_below(path) || is_known(b), RENAME, base(path))
SIMPLE(int, link, (const char *from, PATH), (from, path), is_below(path), LINK, base(path))
SIMPLE(int, linkat, (int a, const char *from, int b, PATH, int flags), (a, from, b, path, flags),
       is_below(path) || is_known(b), LINK, base(path))
SIMPLE(int, unlink, (PATH), (path), is_below(path), UNLINK, base(path))
SIMPLE(int, unlinkat, (int folder, PATH, int flags), (folder, path, flags), is_below(path) || is_known(folder),
       flags &AT_REMOVEDIR ? RMDIR : UNLINK, base(path))
SIMPLE(int, mkdir, (PATH, mode_t mode), (path, mode), is_below(path), MKDIR, base(path))
SIMPLE(int, mkdirat, (int folder, PATH, mode_t mode), (folder, path, mode), is_below(path) || is_known(folder), MKDIR,
       base(path))
SIMPLE(int, rmdir, (PATH), (path), is_below(path), RMDIR, base(path))

DIR *opendir(PATH) {
    REAL(opendir)
    struct fault fault = none;
    if (is_below(path))
        fault = ask(LIST, base(path));
    if (fault.moment == BEFORE || fault.moment == AFTER) {
        errno = fault.number;
        return NULL;
    }
    DIR *found = real(path);
    done(fault, 0);
    return found;
}

SIMPLE(int, access, (PATH, int mode), (path, mode), is_below(path), STAT, base(path))
SIMPLE(int, faccessat, (int folder, PATH, int mode, int flags), (folder, path, mode, flags),
       is_below(path) || is_known(folder), STAT, base(path))
#define LOOKS(name, one, at, link, status)                                                                             \
    SIMPLE(int, name, (PATH, struct status * found), (path, found), is_below(path), STAT, base(path))                  \
    SIMPLE(int, link, (PATH, struct status * found), (path, found), is_below(path), STAT, base(path))                  \
    SIMPLE(int, one, (int fd, struct status *found), (fd, found), is_known(fd), STAT, names[fd])                       \
    SIMPLE(int, at, (int folder, PATH, struct status *found, int flags), (folder, path, found, flags),                 \
           is_below(path) || (is_known(folder)), STAT, base(path))
LOOKS(stat, fstat, fstatat, lstat, stat)
LOOKS(stat64, fstat64, fstatat64, lstat64, stat64)
