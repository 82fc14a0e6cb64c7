#include "region.h"

#include <errno.h>
#include <string.h>

#include "fatal.h"
#include "options.h"

union ma_sealed_page ma_sealed_page __attribute__ ((aligned (MA_PAGE_MOST)));

/* runtime.h's name for the page's first member. In assembly: to the compiler two objects do not lie in
 * the same place, and its address sanitizer puts a fence between them. */
__asm__ (
    ".globl ma_region\n\t"
    ".protected ma_region\n\t" /* no copy in a program, which would stay as it is at the start */
    ".type ma_region, %object\n\t"
    ".size ma_region, 16\n\t"
    ".set ma_region, ma_sealed_page");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* One bit per unit: taken. */
static uint64_t *taken;
static size_t units;
static size_t low;  /* first word of slabs to look at */
static size_t high; /* first unit of large blocks to look at */

/* The tables have an entry for each unit that there may be, and can be written only where units were taken. */
enum
{
  STRETCH = 64 /* units that are made ready together: 4 MiB of an arena */
};
static uint64_t *ready_units; /* bit by stretch: its units can be written; */
static uint64_t *ready_sizes; /* and the sizes of their blocks, of slabs */

static char *pool;
static size_t pool_left;
static size_t pool_open; /* of that, what can be written */
enum
{
  POOL_MORE = 1 << 20 /* opened, or mapped, when it is used up: some ten threads' worth */
};

/* The sizes of a slab's blocks: by how many slots it has it uses a place in one of four tables, as
 * what few slots need of a page each would be as much as a tenth of the blocks. None is a multiple of
 * the sets of a first-level cache: the first slots of all slabs would share a few of them. */
enum
{
  TIERS = 4
};
static const size_t tier_slots[TIERS] = { MA_SLOTS / 8, MA_SLOTS / 4, MA_SLOTS / 2, MA_SLOTS };
/* And, where there are tags, a fifth with a byte for each slot. */
static const size_t tier_stride[TIERS + 1]
    = { MA_SLOTS / 4 + 64, MA_SLOTS / 2 + 64, MA_SLOTS + 64, 2 * MA_SLOTS + 192, MA_SLOTS + 64 };
static char *sizes;

enum
{
  SIZES_BYTES = MA_SLOTS / 4 + MA_SLOTS / 2 + MA_SLOTS + 2 * MA_SLOTS + 3 * 64 + 192
      + (MA_HAS_TAGS ? MA_SLOTS + 64 : 0)
};

static char *
tier_place (unsigned tier, size_t unit)
{
  char *table = sizes;
  for (unsigned i = 0; i < tier; i++)
    table += units * tier_stride[i];
  return table + unit * tier_stride[tier];
}

void
ma_region_lock (void)
{
  pthread_mutex_lock (&lock);
}

void
ma_region_unlock (void)
{
  pthread_mutex_unlock (&lock);
}

static uint64_t
new_canary (void)
{
  uint64_t canary;
  os_random (&canary, sizeof canary);
  return canary | 0x0101010101010101u;
}

static int
reserve (size_t size)
{
  void *base;
  int refused = os_reserve (size, MA_UNIT, &base);
  if (refused)
    return refused;
  size_t n = size >> MA_UNIT_SHIFT;
  void *table = NULL;
  void *size_table = NULL;
  void *bits = NULL;
  void *more = NULL;
  void *unforked = NULL;
  /* One thread's metadata is 100 KiB, of which it touches what it uses. */
  size_t pool_size = size >> 6 > (size_t)16 << 20 ? size >> 6 : (size_t)16 << 20;
  size_t words = (n + 63) / 64;
  size_t ready_words = (words + 63) / 64;
  size_t bit_bytes = os_round_up ((words + 2 * ready_words) * 8, MA_PAGE);
  size_t table_bytes = os_round_up (n * sizeof (struct ma_unit), MA_PAGE);
  /* Units are looked at also where none was taken: by a free of what is no block. */
  if ((refused = os_map_closed (table_bytes, &table)) || (refused = os_seal (table, table_bytes, 1))
      || (refused = os_map_closed (os_round_up (n * SIZES_BYTES, MA_PAGE), &size_table))
      || (refused = os_map (bit_bytes, &bits))
      || (refused = os_map_closed (os_round_up (pool_size, MA_PAGE), &more))
      || (refused = os_map (MA_PAGE, &unforked)))
    {
      /* The metadata is in proportion: a smaller region follows. What was mapped of this one is a
       * few reserved pages in a process that is short of address space; it goes too. */
      os_unreserve (base, size);
      if (table)
        os_unreserve (table, table_bytes);
      if (size_table)
        os_unreserve (size_table, os_round_up (n * SIZES_BYTES, MA_PAGE));
      if (bits)
        os_unreserve (bits, bit_bytes);
      if (more)
        os_unreserve (more, os_round_up (pool_size, MA_PAGE));
      return refused;
    }
  taken = bits;
  ready_units = taken + words;
  ready_sizes = ready_units + ready_words;
  units = n;
  /* The first and the last unit are never given out: they guard the rest. */
  taken[0] |= 1;
  taken[(n - 1) / 64] |= (uint64_t)1 << ((n - 1) % 64);
  high = n / 2;
  sizes = size_table;
  pool = more;
  pool_left = pool_size;
  if (os_fork_wiped (unforked, MA_PAGE) == 0)
    *(uint8_t *)unforked = 1;
  ma_sealed.units = table;
  ma_sealed.dump_refused = os_exclude_from_dump (base, size);
  ma_sealed.canary = ma_sealed.canary_again = new_canary ();
  ma_sealed.unforked = unforked;
  os_loader (&ma_sealed.loader, &ma_sealed.loader_size);
  ma_sealed.region.base = (uintptr_t)base;
  /* Last, as the size is what makes an address ours. */
  __atomic_store_n (&ma_sealed.region.size, size, __ATOMIC_RELEASE);
  os_seal (&ma_sealed_page, sizeof ma_sealed_page, 1);
  return 0;
}

int
ma_region_init (void)
{
  if (likely (__atomic_load_n (&ma_sealed.region.size, __ATOMIC_ACQUIRE) != 0))
    return 0;
  os_init ();
  size_t asked = ma_options ()->region_size;
  int refused = 0;
  pthread_mutex_lock (&lock);
  if (ma_sealed.region.size == 0)
    {
      /* Under a limit of address space (RLIMIT_AS, strict overcommit) a smaller region does, down
       * to what a small program needs. */
      size_t size = asked & ~(MA_UNIT - 1);
      while ((refused = reserve (size)) != 0 && size > ((size_t)64 << 20))
        size /= 4;
      if (refused == 0 && ma_options ()->verbose == MA_VERBOSE)
        {
          char bytes[24];
          ma_warn ("reserved: ", ma_decimal (bytes, size), " bytes of address space", NULL);
        }
    }
  pthread_mutex_unlock (&lock);
  return refused ? ENOMEM : 0;
}

uint16_t *
ma_region_sizes (const struct ma_unit *unit, size_t slots)
{
  unsigned tier = 0;
  while (tier_slots[tier] < slots)
    tier++;
  return (uint16_t *)tier_place (tier, ma_unit_index (unit));
}

#if MA_HAS_TAGS
uint8_t *
ma_region_tags (const struct ma_unit *unit)
{
  return (uint8_t *)tier_place (TIERS, ma_unit_index (unit));
}
#endif

size_t
ma_region_units (void)
{
  return units;
}

static int
is_taken (size_t i)
{
  return taken[i / 64] >> (i % 64) & 1;
}

/* The first run of N free units at or after FROM, or UNITS. */
static size_t
find (size_t from, size_t n)
{
  size_t run = 0;
  for (size_t i = from; i < units; i++)
    {
      if (run == 0 && i % 64 == 0)
        while (i + 64 <= units && taken[i / 64] == UINT64_MAX)
          i += 64;
      if (i >= units)
        break;
      run = is_taken (i) ? 0 : run + 1;
      if (run == n)
        return i + 1 - n;
    }
  return units;
}

/* Writable, from page to page: neighbours that share one with them as well. */
static int
open_inside (char *first, char *end)
{
  char *from = (char *)((uintptr_t)first & ~(MA_PAGE - 1));
  return os_open (from, os_round_up ((size_t)(end - from), MA_PAGE));
}

static int
open_units (size_t begin, size_t end)
{
  return open_inside ((char *)&ma_sealed.units[begin], (char *)&ma_sealed.units[end]);
}

static int
open_sizes (size_t begin, size_t end)
{
  int refused = 0;
  for (unsigned tier = 0; tier < TIERS + (MA_HAS_TAGS ? 1 : 0) && !refused; tier++)
    refused = open_inside (tier_place (tier, begin), tier_place (tier, end));
  return refused;
}

/* The stretches in which the units FIRST to END lie, in as few calls of OPEN as it takes. */
static int
make_ready (uint64_t *ready, size_t first, size_t end, int (*open) (size_t, size_t))
{
  size_t last = (end - 1) / STRETCH;
  for (size_t i = first / STRETCH; i <= last; i++)
    {
      size_t begin = i;
      while (i <= last && !(ready[i / 64] >> (i % 64) & 1))
        i++;
      size_t most = i * STRETCH < units ? i * STRETCH : units;
      if (i != begin && open (begin * STRETCH, most))
        return 0;
      for (; begin < i; begin++)
        ready[begin / 64] |= (uint64_t)1 << (begin % 64);
    }
  return 1;
}

/* Whether the tables can be written for units that are going to be taken. */
static int
are_ready (size_t first, size_t n, int large)
{
  return make_ready (ready_units, first, first + n, open_units)
         && (large || make_ready (ready_sizes, first, first + n, open_sizes));
}

static struct ma_unit *
take (size_t first, size_t n)
{
  for (size_t i = first; i < first + n; i++)
    taken[i / 64] |= (uint64_t)1 << (i % 64);
  return &ma_sealed.units[first];
}

struct ma_unit *
ma_region_take (size_t n, int large)
{
  struct ma_unit *first = NULL;
  pthread_mutex_lock (&lock);
  size_t *rover = large ? &high : &low;
  size_t i = find (*rover, n);
  if (i == units)
    i = find (0, n);
  if (i != units && are_ready (i, n, large))
    {
      *rover = i + n;
      first = take (i, n);
    }
  pthread_mutex_unlock (&lock);
  return first;
}

int
ma_region_extend (struct ma_unit *after, size_t n)
{
  size_t first = ma_unit_index (after);
  pthread_mutex_lock (&lock);
  size_t i = first;
  while (i < units && i < first + n && !is_taken (i))
    i++;
  int is_free = i == first + n && are_ready (first, n, 1);
  if (is_free)
    take (first, n);
  pthread_mutex_unlock (&lock);
  return is_free;
}

void
ma_region_give (struct ma_unit *first, size_t n)
{
  size_t i = ma_unit_index (first);
  pthread_mutex_lock (&lock);
  for (size_t j = i; j < i + n; j++)
    {
      ma_sealed.units[j].kind = MA_UNIT_FREE;
      ma_sealed.units[j].group = 0; /* a free goes by it: it may be of a large block next */
      taken[j / 64] &= ~((uint64_t)1 << (j % 64));
    }
  /* Low addresses first, so that page tables and mappings stay few. */
  size_t *rover = i >= units / 2 ? &high : &low;
  if (i < *rover)
    *rover = i;
  pthread_mutex_unlock (&lock);
}

/* Whole pages of a table whose entries FIRST to END are of no use. */
static void
discard_inside (char *first, char *end)
{
  char *from = (char *)os_round_up ((uintptr_t)first, MA_PAGE);
  char *to = (char *)((uintptr_t)end & ~(MA_PAGE - 1));
  if (from < to)
    os_discard (from, (size_t)(to - from), 0);
}

void
ma_region_forget (struct ma_unit *first, size_t n)
{
  size_t begin = ma_unit_index (first);
  size_t end = begin + n;
  size_t more = MA_PAGE / sizeof *first + 1;
  pthread_mutex_lock (&lock);
  int is_free = 1;
  for (size_t i = begin; i < end; i++)
    is_free &= !is_taken (i);
  if (is_free)
    {
      /* A page tells of some neighbours too. */
      for (size_t i = 0; i < more && begin > 0 && !is_taken (begin - 1); i++)
        begin--;
      for (size_t i = 0; i < more && end < units && !is_taken (end); i++)
        end++;
      for (unsigned tier = 0; tier < TIERS && n > 1; tier++)
        discard_inside (tier_place (tier, begin), tier_place (tier, end));
      discard_inside ((char *)&ma_sealed.units[begin], (char *)&ma_sealed.units[end]);
    }
  pthread_mutex_unlock (&lock);
}

/* Whether the pool has so much more that can be written. */
static int
is_pool_open (size_t size)
{
  size_t rest = pool_left - pool_open;
  size_t more = rest < POOL_MORE ? rest : POOL_MORE;
  if (size > pool_open && size <= pool_open + more && os_open (pool + pool_open, more) == 0)
    pool_open += more;
  return size <= pool_open;
}

void *
ma_pool (size_t size)
{
  void *p = NULL;
  size = os_round_up (size, 128); /* two cache lines: what threads write must not share any */
  pthread_mutex_lock (&lock);
  /* A thread may enter the ordinary malloc before there is any arena. */
  if (ma_sealed.region.size == 0)
    {
      if (os_map (os_round_up (size, MA_PAGE), &p))
        p = NULL;
    }
  else if (size > pool_left && os_map (POOL_MORE, &p) == 0)
    {
      pool = (char *)p + size;
      pool_left = pool_open = POOL_MORE - size;
    }
  else if (is_pool_open (size))
    {
      p = pool;
      pool += size;
      pool_left -= size;
      pool_open -= size;
    }
  pthread_mutex_unlock (&lock);
  return p;
}
