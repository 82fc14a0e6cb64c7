/* scan.h - a pattern that tells lost bytes from others, and a look for it in another process. */
#ifndef MA_SCAN_H
#define MA_SCAN_H

#include "check.h"

/* Every 32 bytes of a block are a needle of 24 and a stamp of 8. The needle is in one piece nowhere
 * else: stored a word at a time, from numbers that are not it. */
enum
{
  SCAN_NEEDLES = 2 /* of the program, and of its children */
};

static inline uint64_t
scan_word (unsigned needle, unsigned at)
{
  uint64_t key = 0x5bd1e995a77c3f21u + needle * 0x1234567089abcdefu;
  uint64_t word = (key << (at * 8 + 3) | key >> (61 - at * 8)) * 0x9e3779b97f4a7c15u;
  __asm__ volatile ("" : "+r"(word));
  return word;
}

static inline void
scan_fill (void *block, size_t size, unsigned needle, uint64_t stamp)
{
  volatile uint64_t *words = block;
  for (size_t at = 0; at < size / 8; at++)
    words[at] = at % 4 == 3 ? stamp : scan_word (needle, (unsigned)(at % 4));
  volatile unsigned char *bytes = block;
  for (size_t at = size & ~(size_t)7; at < size; at++)
    bytes[at] = (unsigned char)(stamp >> (at & 7) * 8);
}

static inline bool
scan_is_filled (const void *block, size_t size, size_t filled, unsigned needle, uint64_t stamp)
{
  const volatile uint64_t *words = block;
  for (size_t at = 0; at < size / 8; at++)
    if (words[at] != (at % 4 == 3 ? stamp : scan_word (needle, (unsigned)(at % 4))))
      return false;
  /* Of a block that has shrunk the last bytes are those of a word. */
  if (size != filled)
    return true;
  const volatile unsigned char *bytes = block;
  for (size_t at = size & ~(size_t)7; at < size; at++)
    if (bytes[at] != (unsigned char)(stamp >> (at & 7) * 8))
      return false;
  return true;
}

struct scan
{
  unsigned needle;
  bool (*is_expected) (uintptr_t, void *);
  void *data;
  size_t bytes, found, unexpected;
  uintptr_t first;   /* of the unexpected */
  char mapping[128]; /* and where that is */
};

/* The first 16 bytes of the needle, in each piece of memory that is present. */
static inline void
scan_range (struct scan *scan, int memory, uintptr_t start, uintptr_t end, const char *line)
{
  static uint64_t buffer[(1 << 20) / 8];
  uint64_t first = scan_word (scan->needle, 0), second = scan_word (scan->needle, 1);
  while (start < end)
    {
      size_t want = end - start < sizeof buffer ? end - start : sizeof buffer;
      ssize_t got = pread (memory, buffer, want, (off_t)start);
      if (got <= 0)
        {
          start += CHECK_PAGE; /* a guard, or memfd_secret */
          continue;
        }
      scan->bytes += (size_t)got;
      for (size_t at = 0; at + 1 < (size_t)got / 8; at++)
        if (buffer[at] == first && buffer[at + 1] == second)
          {
            uintptr_t p = start + at * 8;
            scan->found++;
            if (!scan->is_expected (p, scan->data) && scan->unexpected++ == 0)
              {
                scan->first = p;
                snprintf (scan->mapping, sizeof scan->mapping, "%s", line);
              }
          }
      start += (size_t)got;
    }
}

/* Looks through all memory of the process. Ours is left out by IS_EXPECTED. */
static inline void
scan_process (struct scan *scan, pid_t pid)
{
  char path[64], line[512];
  snprintf (path, sizeof path, "/proc/%d/maps", pid);
  struct check_lines lines = { .fd = open (path, O_RDONLY | O_CLOEXEC) };
  snprintf (path, sizeof path, "/proc/%d/mem", pid);
  int memory = open (path, O_RDONLY | O_CLOEXEC);
  snprintf (path, sizeof path, "/proc/%d/pagemap", pid);
  int pagemap = open (path, O_RDONLY | O_CLOEXEC);
  CHECK (lines.fd >= 0 && memory >= 0 && pagemap >= 0);
  size_t page = CHECK_PAGE;
  while (check_line (&lines, line, sizeof line))
    {
      unsigned long start, end;
      if (sscanf (line, "%lx-%lx", &start, &end) != 2 || strstr (line, "[v") != NULL)
        continue;
      static uint64_t entries[1 << 15];
      uintptr_t run = 0;
      for (uintptr_t at = start; at < end;)
        {
          size_t want = (end - at) / page;
          if (want > sizeof entries / 8)
            want = sizeof entries / 8;
          ssize_t got = pread (pagemap, entries, want * 8, (off_t)(at / page * 8));
          if (got <= 0)
            break;
          for (size_t i = 0; i < (size_t)got / 8; i++, at += page)
            if (entries[i] >> 62) /* present, or in swap */
              run = run ? run : at;
            else if (run)
              {
                scan_range (scan, memory, run, at, line);
                run = 0;
              }
        }
      if (run)
        scan_range (scan, memory, run, end, line);
    }
  close (pagemap);
  close (memory);
  close (lines.fd);
}

static inline bool
scan_expects_nothing (uintptr_t p, void *unused)
{
  (void)p;
  (void)unused;
  return false;
}

#endif
