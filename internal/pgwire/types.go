package pgwire

// Message types that clients send: PqMsg_* in src/include/libpq/protocol.h.
const (
	Bind         = 'B'
	Close        = 'C'
	Describe     = 'D'
	Execute      = 'E'
	FunctionCall = 'F'
	Flush        = 'H'
	Parse        = 'P'
	Query        = 'Q'
	Sync         = 'S'
	Terminate    = 'X'
	CopyFail     = 'f'
	// Password stands for PasswordMessage, SASLInitialResponse and SASLResponse, which only occur during a login.
	Password = 'p'
)

// Message types that both sides send.
const (
	CopyDone = 'c'
	CopyData = 'd'
)

// Message types that servers send.
const (
	ParseComplete        = '1'
	BindComplete         = '2'
	CloseComplete        = '3'
	NotificationResponse = 'A'
	CommandComplete      = 'C'
	DataRow              = 'D'
	ErrorResponse        = 'E'
	CopyInResponse       = 'G'
	CopyOutResponse      = 'H'
	EmptyQueryResponse   = 'I'
	NoticeResponse       = 'N'
	ParameterStatus      = 'S'
	RowDescription       = 'T'
	FunctionCallResponse = 'V'
	ReadyForQuery        = 'Z'
	NoData               = 'n'
	PortalSuspended      = 's'
	ParameterDescription = 't'
)

// Transaction states of ReadyForQuery: TransactionBlockStatusCode in src/backend/access/transam/xact.c.
const (
	Idle        = 'I'
	Transaction = 'T'
	Failed      = 'E'
)
