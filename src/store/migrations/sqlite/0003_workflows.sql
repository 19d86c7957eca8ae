-- Every name of a workflow that ever had a version.
CREATE TABLE workflows (
    name      TEXT    NOT NULL PRIMARY KEY,
    -- The greatest number given to a version, so that none is given twice even after the version is gone.
    last      INTEGER NOT NULL,
    -- The version the API published under this name. NULL: none was, or it was withdrawn.
    published INTEGER,
    -- Publications and withdrawals are counted across all names; this is the number of the last one that concerned this name, or 0.
    revision  INTEGER NOT NULL
) STRICT;

CREATE INDEX workflows_revision ON workflows (revision);

CREATE TABLE workflow_versions (
    name       TEXT    NOT NULL REFERENCES workflows (name) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    sha256     BLOB    NOT NULL CHECK (length(sha256) = 32),
    text       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT;

CREATE INDEX workflow_versions_content ON workflow_versions (name, sha256, version);
