// The kernels of one instruction set.
#include "blocks.hpp"

#ifndef COLDPRESS_ISA
#define COLDPRESS_ISA portable
#endif

#define COLDPRESS_NAME_(isa) #isa
#define COLDPRESS_NAME(isa) COLDPRESS_NAME_(isa)

namespace coldpress::blocks::COLDPRESS_ISA {

void search(const Search& search, float* buffer);

extern const KernelTable kTable;
const KernelTable kTable = {COLDPRESS_NAME(COLDPRESS_ISA), search};

}  // namespace coldpress::blocks::COLDPRESS_ISA
