/* The declarations of WasmEdge 0.14.1's C API, as far as this project calls it, and of the C library's.

   Source: wasmedge/wasmedge.h of 0.14.1. A WasmEdge_Result is a struct of one uint32_t, and passed as a plain one. */

typedef struct { uint8_t Data[8]; } WasmEdge_ValType;
typedef struct { uint32_t Length; const char *Buf; } WasmEdge_String;
typedef struct { uint32_t Length; const uint8_t *Buf; } WasmEdge_Bytes;
typedef struct { bool HasMax; bool Shared; uint32_t Min; uint32_t Max; } WasmEdge_Limit;
typedef struct WasmEdge_ConfigureContext WasmEdge_ConfigureContext;
typedef struct WasmEdge_StatisticsContext WasmEdge_StatisticsContext;
typedef struct WasmEdge_ASTModuleContext WasmEdge_ASTModuleContext;
typedef struct WasmEdge_FunctionTypeContext WasmEdge_FunctionTypeContext;
typedef struct WasmEdge_MemoryTypeContext WasmEdge_MemoryTypeContext;
typedef struct WasmEdge_ImportTypeContext WasmEdge_ImportTypeContext;
typedef struct WasmEdge_ExportTypeContext WasmEdge_ExportTypeContext;
typedef struct WasmEdge_CompilerContext WasmEdge_CompilerContext;
typedef struct WasmEdge_LoaderContext WasmEdge_LoaderContext;
typedef struct WasmEdge_ValidatorContext WasmEdge_ValidatorContext;
typedef struct WasmEdge_ExecutorContext WasmEdge_ExecutorContext;
typedef struct WasmEdge_StoreContext WasmEdge_StoreContext;
typedef struct WasmEdge_ModuleInstanceContext WasmEdge_ModuleInstanceContext;
typedef struct WasmEdge_FunctionInstanceContext WasmEdge_FunctionInstanceContext;
typedef struct WasmEdge_MemoryInstanceContext WasmEdge_MemoryInstanceContext;
typedef struct WasmEdge_CallingFrameContext WasmEdge_CallingFrameContext;
typedef uint32_t Result;
typedef Result (*HostFunction)(void *, const WasmEdge_CallingFrameContext *, const uint32_t *, uint32_t *);

const char *WasmEdge_VersionGet(void);
void WasmEdge_LogOff(void);
void WasmEdge_LogSetErrorLevel(void);
const char *WasmEdge_ResultGetMessage(Result);
WasmEdge_ValType WasmEdge_ValTypeGenI32(void);
WasmEdge_ValType WasmEdge_ValTypeGenI64(void);
bool WasmEdge_ValTypeIsI32(WasmEdge_ValType);
bool WasmEdge_ValTypeIsI64(WasmEdge_ValType);

WasmEdge_ConfigureContext *WasmEdge_ConfigureCreate(void);
void WasmEdge_ConfigureAddProposal(WasmEdge_ConfigureContext *, int);
void WasmEdge_ConfigureSetMaxMemoryPage(WasmEdge_ConfigureContext *, uint32_t);
void WasmEdge_ConfigureSetForceInterpreter(WasmEdge_ConfigureContext *, bool);
void WasmEdge_ConfigureCompilerSetOptimizationLevel(WasmEdge_ConfigureContext *, int);
void WasmEdge_ConfigureCompilerSetOutputFormat(WasmEdge_ConfigureContext *, int);
void WasmEdge_ConfigureDelete(WasmEdge_ConfigureContext *);

WasmEdge_CompilerContext *WasmEdge_CompilerCreate(const WasmEdge_ConfigureContext *);
Result WasmEdge_CompilerCompileFromBuffer(WasmEdge_CompilerContext *, const uint8_t *, uint64_t, const char *);
void WasmEdge_CompilerDelete(WasmEdge_CompilerContext *);

WasmEdge_LoaderContext *WasmEdge_LoaderCreate(const WasmEdge_ConfigureContext *);
Result WasmEdge_LoaderParseFromFile(WasmEdge_LoaderContext *, WasmEdge_ASTModuleContext **, const char *);
Result WasmEdge_LoaderParseFromBytes(WasmEdge_LoaderContext *, WasmEdge_ASTModuleContext **, WasmEdge_Bytes);
void WasmEdge_LoaderDelete(WasmEdge_LoaderContext *);
WasmEdge_ValidatorContext *WasmEdge_ValidatorCreate(const WasmEdge_ConfigureContext *);
Result WasmEdge_ValidatorValidate(WasmEdge_ValidatorContext *, const WasmEdge_ASTModuleContext *);
void WasmEdge_ValidatorDelete(WasmEdge_ValidatorContext *);
uint32_t WasmEdge_ASTModuleListExportsLength(const WasmEdge_ASTModuleContext *);
uint32_t WasmEdge_ASTModuleListExports(const WasmEdge_ASTModuleContext *, const WasmEdge_ExportTypeContext **,
                                       uint32_t);
uint32_t WasmEdge_ASTModuleListImportsLength(const WasmEdge_ASTModuleContext *);
uint32_t WasmEdge_ASTModuleListImports(const WasmEdge_ASTModuleContext *, const WasmEdge_ImportTypeContext **,
                                       uint32_t);
int WasmEdge_ImportTypeGetExternalType(const WasmEdge_ImportTypeContext *);
WasmEdge_String WasmEdge_ImportTypeGetModuleName(const WasmEdge_ImportTypeContext *);
int WasmEdge_ExportTypeGetExternalType(const WasmEdge_ExportTypeContext *);
WasmEdge_String WasmEdge_ExportTypeGetExternalName(const WasmEdge_ExportTypeContext *);
const WasmEdge_MemoryTypeContext *WasmEdge_ExportTypeGetMemoryType(const WasmEdge_ASTModuleContext *,
                                                                   const WasmEdge_ExportTypeContext *);
const WasmEdge_FunctionTypeContext *WasmEdge_ExportTypeGetFunctionType(const WasmEdge_ASTModuleContext *,
                                                                       const WasmEdge_ExportTypeContext *);
WasmEdge_Limit WasmEdge_MemoryTypeGetLimit(const WasmEdge_MemoryTypeContext *);
void WasmEdge_ASTModuleDelete(WasmEdge_ASTModuleContext *);

WasmEdge_FunctionTypeContext *WasmEdge_FunctionTypeCreate(const WasmEdge_ValType *, uint32_t,
                                                          const WasmEdge_ValType *, uint32_t);
uint32_t WasmEdge_FunctionTypeGetParametersLength(const WasmEdge_FunctionTypeContext *);
uint32_t WasmEdge_FunctionTypeGetParameters(const WasmEdge_FunctionTypeContext *, WasmEdge_ValType *, uint32_t);
uint32_t WasmEdge_FunctionTypeGetReturnsLength(const WasmEdge_FunctionTypeContext *);
uint32_t WasmEdge_FunctionTypeGetReturns(const WasmEdge_FunctionTypeContext *, WasmEdge_ValType *, uint32_t);
void WasmEdge_FunctionTypeDelete(WasmEdge_FunctionTypeContext *);
WasmEdge_FunctionInstanceContext *WasmEdge_FunctionInstanceCreate(const WasmEdge_FunctionTypeContext *, HostFunction,
                                                                  void *, uint64_t);
WasmEdge_ModuleInstanceContext *WasmEdge_ModuleInstanceCreate(WasmEdge_String);
void WasmEdge_ModuleInstanceAddFunction(WasmEdge_ModuleInstanceContext *, WasmEdge_String,
                                        WasmEdge_FunctionInstanceContext *);
WasmEdge_FunctionInstanceContext *WasmEdge_ModuleInstanceFindFunction(const WasmEdge_ModuleInstanceContext *,
                                                                      WasmEdge_String);
void WasmEdge_ModuleInstanceDelete(WasmEdge_ModuleInstanceContext *);
WasmEdge_MemoryTypeContext *WasmEdge_MemoryTypeCreate(WasmEdge_Limit);
void WasmEdge_MemoryTypeDelete(WasmEdge_MemoryTypeContext *);
WasmEdge_MemoryInstanceContext *WasmEdge_MemoryInstanceCreate(const WasmEdge_MemoryTypeContext *);
void WasmEdge_ModuleInstanceAddMemory(WasmEdge_ModuleInstanceContext *, WasmEdge_String,
                                      WasmEdge_MemoryInstanceContext *);
uint8_t *WasmEdge_MemoryInstanceGetPointer(WasmEdge_MemoryInstanceContext *, uint32_t, uint32_t);
uint32_t WasmEdge_MemoryInstanceGetPageSize(const WasmEdge_MemoryInstanceContext *);
Result WasmEdge_MemoryInstanceGrowPage(WasmEdge_MemoryInstanceContext *, uint32_t);

WasmEdge_StoreContext *WasmEdge_StoreCreate(void);
void WasmEdge_StoreDelete(WasmEdge_StoreContext *);
WasmEdge_ExecutorContext *WasmEdge_ExecutorCreate(const WasmEdge_ConfigureContext *, WasmEdge_StatisticsContext *);
Result WasmEdge_ExecutorRegisterImport(WasmEdge_ExecutorContext *, WasmEdge_StoreContext *,
                                       const WasmEdge_ModuleInstanceContext *);
Result WasmEdge_ExecutorInstantiate(WasmEdge_ExecutorContext *, WasmEdge_ModuleInstanceContext **,
                                    WasmEdge_StoreContext *, const WasmEdge_ASTModuleContext *);
Result WasmEdge_ExecutorInvoke(WasmEdge_ExecutorContext *, const WasmEdge_FunctionInstanceContext *, const void *,
                               uint32_t, void *, uint32_t);
void WasmEdge_ExecutorDelete(WasmEdge_ExecutorContext *);

/* The first fields of the object behind a WasmEdge_MemoryInstanceContext in 0.14.1: its pages now, its most pages, and
   its base address. They are here because no function of the C API makes a memory smaller. */
typedef struct { uint8_t kind; uint32_t pages; uint32_t most; uint8_t *base; } Inside;

void *mmap(void *, size_t, int, int, int, long);
int munmap(void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);
int madvise(void *, size_t, int);
struct mallinfo2 {
    size_t arena; size_t ordblks; size_t smblks; size_t hblks; size_t hblkhd;
    size_t usmblks; size_t fsmblks; size_t uordblks; size_t fordblks; size_t keepcost;
};
struct mallinfo2 mallinfo2(void);
