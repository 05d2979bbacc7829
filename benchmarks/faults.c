/* Counts every call that changes something below one folder, and at the Nth ends the process or fails the call.
   Loaded before the C library (LD_PRELOAD), so that it sees Python, C++ and Rust alike. Used by faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, PLUG, FAIL, FULL }; /* PLUG: kill, and what was never flushed is gone; FULL: from N on */
#define SPACE 1 /* takes room on the disk */
#define DIRTY 16384

static char root[PATH_MAX];
static int mode = OFF, code, fired;
static long at, count;
static struct { dev_t dev; ino_t ino; off_t flushed; } dirty[DIRTY]; /* files written, and how far they are safe */
static int n_dirty;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

void faults_arm(const char *folder, int how, long number, int error) {
    snprintf(root, sizeof root, "%s", folder);
    at = number, code = error, count = 0, fired = 0, n_dirty = 0, mode = how;
}
long faults_count(void) { return count; }
int faults_fired(void) { return fired; }
void faults_off(void) { mode = OFF; }

static int below(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int at_path(int dirfd, const char *path) {
    char link[64], full[PATH_MAX];
    if (!path) return 0;
    if (path[0] == '/') return below(path);
    if (dirfd == AT_FDCWD) {
        if (!getcwd(full, sizeof full)) return 0;
        return below(full);
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    ssize_t size = readlink(link, full, sizeof full - 1);
    if (size < 0) return 0;
    full[size] = 0;
    return below(full);
}

static int at_fd(int fd) {
    struct stat info;
    return mode != OFF && !fstat(fd, &info) && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode)) && at_path(fd, "");
}

enum { WRITTEN, FLUSHED, EMPTIED };

static void mark(int fd, int what) {
    struct stat info;
    int i = 0;
    if (fstat(fd, &info)) return;
    while (i < n_dirty && (dirty[i].dev != info.st_dev || dirty[i].ino != info.st_ino)) i++;
    if (i == DIRTY) return;
    if (i == n_dirty) dirty[n_dirty].dev = info.st_dev, dirty[n_dirty].ino = info.st_ino, dirty[n_dirty++].flushed = 0;
    if (what == FLUSHED) dirty[i].flushed = info.st_size;
    if (what == EMPTIED) dirty[i].flushed = 0;
}

static int lose(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)where;
    if (type == FTW_F)
        for (int i = 0; i < n_dirty; i++)
            if (dirty[i].dev == info->st_dev && dirty[i].ino == info->st_ino && dirty[i].flushed < info->st_size)
                syscall(SYS_truncate, path, (long)dirty[i].flushed);
    return 0;
}

static void die(void) {
    int drop = mode == PLUG;
    mode = OFF;
    if (drop) nftw(root, lose, 16, FTW_PHYS);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; -1: fail with errno; 1: write half of it and die */
static int hit(int watched, int kind, int halves) {
    if (mode == OFF || !watched || (mode == FULL && kind != SPACE)) return 0;
    count++;
    if (mode == COUNT || (mode == FULL ? count < at : count != at)) return 0;
    fired = 1;
    if (mode == KILL || mode == PLUG) {
        if (halves) return 1;
        die();
    }
    errno = code;
    return -1;
}

#define GUARD(watched, kind, bad) if (mode != OFF && hit((watched), (kind), 0)) return bad

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }
static int creates(int flags) { return flags & O_CREAT ? SPACE : 0; }

static int opened(int fd, int flags) {
    if (fd >= 0 && flags & O_TRUNC && at_fd(fd)) mark(fd, EMPTIED);
    return fd;
}

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, int); va_end(rest); \
        REAL(name);                                                                    \
        if (changes(flags)) GUARD(at_path(AT_FDCWD, path), creates(flags), -1);        \
        return opened(real(path, flags, bits), flags);                                 \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                   \
    int name(int dirfd, const char *path, int flags, ...) {                            \
        va_list rest; va_start(rest, flags); mode_t bits = va_arg(rest, int); va_end(rest); \
        REAL(name);                                                                    \
        if (changes(flags)) GUARD(at_path(dirfd, path), creates(flags), -1);           \
        return opened(real(dirfd, path, flags, bits), flags);                          \
    }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name)                                                                    \
    FILE *name(const char *path, const char *how) {                                    \
        REAL(name);                                                                    \
        if (strpbrk(how, "wa+")) GUARD(at_path(AT_FDCWD, path), SPACE, NULL);          \
        return real(path, how);                                                        \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define WRITES(fd, half, whole)                                                        \
    do {                                                                               \
        if (mode != OFF && at_fd(fd)) {                                                \
            int what = hit(1, SPACE, 1);                                               \
            if (what < 0) return -1;                                                   \
            mark(fd, WRITTEN);                                                         \
            if (what) { half; die(); }                                                 \
        }                                                                              \
        return whole;                                                                  \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    WRITES(fd, real(fd, data, size / 2), real(fd, data, size));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    REAL(pwrite);
    WRITES(fd, real(fd, data, size / 2, place), real(fd, data, size, place));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    WRITES(fd, real(fd, data, size / 2, place), real(fd, data, size, place));
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    WRITES(fd, real(fd, parts, number / 2), real(fd, parts, number));
}
ssize_t sendfile(int fd, int from, off_t *place, size_t size) {
    REAL(sendfile);
    WRITES(fd, real(fd, from, place, size / 2), real(fd, from, place, size));
}
ssize_t sendfile64(int fd, int from, off64_t *place, size_t size) {
    REAL(sendfile64);
    WRITES(fd, real(fd, from, place, size / 2), real(fd, from, place, size));
}
ssize_t copy_file_range(int from, off64_t *in, int fd, off64_t *out, size_t size, unsigned flags) {
    REAL(copy_file_range);
    WRITES(fd, real(from, in, fd, out, size / 2, flags), real(from, in, fd, out, size, flags));
}
int ftruncate(int fd, off_t size) { REAL(ftruncate); WRITES(fd, real(fd, size), real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); WRITES(fd, real(fd, size), real(fd, size)); }
int posix_fallocate(int fd, off_t from, off_t size) {
    REAL(posix_fallocate);
    if (mode != OFF && at_fd(fd) && hit(1, SPACE, 0)) return code;
    return real(fd, from, size);
}
size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
    REAL(fwrite);
    int fd = fileno(stream);
    if (mode != OFF && fd >= 0 && at_fd(fd)) {
        int what = hit(1, SPACE, 1);
        if (what < 0) return 0;
        mark(fd, WRITTEN);
        if (what) { real(data, size, number / 2, stream); fflush(stream); die(); }
    }
    return real(data, size, number, stream);
}

#define SYNC(name)                                                                     \
    int name(int fd) {                                                                 \
        REAL(name);                                                                    \
        if (mode == OFF || !at_fd(fd)) return real(fd);                                \
        if (hit(1, SPACE, 0)) return -1;                                               \
        int done = real(fd);                                                           \
        if (!done) mark(fd, FLUSHED);                                                        \
        return done;                                                                   \
    }
SYNC(fsync)
SYNC(fdatasync)

#define ONE(name, kind) int name(const char *path) { REAL(name); GUARD(at_path(AT_FDCWD, path), kind, -1); return real(path); }
ONE(rmdir, 0)
ONE(unlink, 0)
ONE(remove, 0)
#define TWO(name, kind) int name(const char *from, const char *to) { REAL(name); GUARD(at_path(AT_FDCWD, to), kind, -1); return real(from, to); }
TWO(rename, 0)
TWO(link, SPACE)
TWO(symlink, SPACE)
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); GUARD(at_path(b, to), 0, -1); return real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2); GUARD(at_path(b, to), 0, -1); return real(a, from, b, to, flags);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat); GUARD(at_path(b, to), SPACE, -1); return real(a, from, b, to, flags);
}
int symlinkat(const char *from, int b, const char *to) {
    REAL(symlinkat); GUARD(at_path(b, to), SPACE, -1); return real(from, b, to);
}
int mkdir(const char *path, mode_t bits) {
    REAL(mkdir); GUARD(at_path(AT_FDCWD, path), SPACE, -1); return real(path, bits);
}
int mkdirat(int dirfd, const char *path, mode_t bits) {
    REAL(mkdirat); GUARD(at_path(dirfd, path), SPACE, -1); return real(dirfd, path, bits);
}
int unlinkat(int dirfd, const char *path, int flags) {
    REAL(unlinkat); GUARD(at_path(dirfd, path), 0, -1); return real(dirfd, path, flags);
}
int chmod(const char *path, mode_t bits) {
    REAL(chmod); GUARD(at_path(AT_FDCWD, path), 0, -1); return real(path, bits);
}
int fchmod(int fd, mode_t bits) {
    REAL(fchmod); GUARD(at_fd(fd), 0, -1); return real(fd, bits);
}
int fchmodat(int dirfd, const char *path, mode_t bits, int flags) {
    REAL(fchmodat); GUARD(at_path(dirfd, path), 0, -1); return real(dirfd, path, bits, flags);
}
int truncate(const char *path, off_t size) {
    REAL(truncate); GUARD(at_path(AT_FDCWD, path), 0, -1); return real(path, size);
}
