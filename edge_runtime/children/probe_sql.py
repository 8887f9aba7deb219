"""The SQL of a probe (a trial call of a new release)."""

from edge_runtime.sql.call_sql import CallSql
from edge_runtime.sql.session import PreparedStatement


class ProbeSql(CallSql):
    """It runs inside the applier's transaction, and neither begins nor ends it."""

    def _begin(self) -> None:
        self._begun, self._writes = True, self._grant == "write"
        self._session.forget()

    def _undo(self, statement: PreparedStatement, why: str) -> None:
        if statement.writes:
            self._ended = why

    def commit(self) -> None:
        raise RuntimeError("a probe is never kept")

    def rollback(self) -> None:
        self._begun = False
